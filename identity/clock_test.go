package identity

import (
	"strings"
	"testing"
)

// A monotonic reading would make certificates, and what is kept, live on for as
// long as the machine slept.
func TestClockIsOnTheWall(t *testing.T) {
	if text := optionsOf(nil).now().String(); strings.Contains(text, "m=") {
		t.Errorf("the clock says %s", text)
	}
}
