package traffic

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// Both nodes say of a connection how much went from the source to the
// destination and how much came back, while it lives and when it has ended.
func TestBytesAreCounted(t *testing.T) {
	const up, down = 1000, 3000
	m := e2e.Start(t)
	for _, path := range paths(t, m) {
		t.Run(path.name, func(t *testing.T) {
			client, server := path.connect(t)
			say(t, client, strings.Repeat("u", up))
			hear(t, server, strings.Repeat("u", up))
			say(t, server, strings.Repeat("d", down))
			hear(t, client, strings.Repeat("d", down))
			for _, which := range []string{"live", "ended"} {
				if which == "ended" {
					finish(t, client)
					hearEnd(t, server)
					finish(t, server)
					hearEnd(t, client)
				}
				m.Eventually(which+" connections", func() error { return counted(m, which, path, up, down) })
			}
		})
	}
}

func counted(m *e2e.Mesh, which string, p path, up, down uint64) error {
	sides := 0
	for _, node := range []string{"a", "b"} {
		for _, c := range m.Connections(node, which, p.from, "") {
			if to := c.Original.String(); c.Direction == "outbound" && to != p.to || c.Direction == "inbound" && c.Destination.Address.String() != p.to {
				continue
			}
			sides++
			if c.Sent != up || c.Received != down {
				return fmt.Errorf("node %s counts %d and %d bytes %s, %s", node, c.Sent, c.Received, c.Direction, c.Security)
			}
		}
	}
	if sides == 0 {
		return errors.New("no such connection")
	}
	return nil
}
