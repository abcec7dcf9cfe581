package hour

import (
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/api/sight"
)

// Bounds on texts that nodes send, in bytes.
const (
	maxText = 512
	maxName = 253 // as Kubernetes has it
	maxWord = 32
)

// text is what a node said, cut to what is kept of it. The rest is copied off:
// a part would keep the whole message in memory.
func text(s string) string { return strings.Clone(s[:min(len(s), maxText)]) }

// isName reports whether a text can be a name in Kubernetes, or none.
func isName(s string) bool { return len(s) <= maxName }

// isWord reports whether a text can be one of our own words, such as
// "server_skips_port".
func isWord(s string) bool {
	return len(s) <= maxWord && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz_") == ""
}

func party(p *sight.Party) flows.Party {
	return flows.Party{Namespace: text(p.GetNamespace()), Name: text(p.GetName())}
}

// seconds is zero for nothing.
func seconds(since1970 int64) time.Time {
	if since1970 <= 0 {
		return time.Time{}
	}
	return time.Unix(since1970, 0).UTC()
}
