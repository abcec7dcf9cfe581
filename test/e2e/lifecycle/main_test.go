package lifecycle

import (
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
)

func TestMain(m *testing.M) { e2e.Main(m) }
