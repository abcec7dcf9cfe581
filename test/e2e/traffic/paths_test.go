package traffic

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
)

func TestMain(m *testing.M) { e2e.Main(m) }

// Every way that a connection may take, in both families: it arrives, the
// application sees the client's own address, and it travels as it should.
func TestPaths(t *testing.T) {
	m := e2e.Start(t)
	for _, pod := range []string{"mesh/client", "mesh/near", "mesh/server", "mesh/server2", "mesh/server3", "outside/target"} {
		m.Serve(pod, ":8080", e2e.Echo)
	}
	for _, path := range []struct {
		name, from, to string
		v4, v6         string
		security       string // as the client's node calls it; "": the proxy does not see it
	}{
		{"across nodes", "mesh/client", "mesh/server", "198.18.2.10", "fd00:7ac1:2::10", "mtls"},
		{"same node", "mesh/client", "mesh/near", "198.18.1.20", "fd00:7ac1:1::20", "local"},
		{"service", "mesh/client", "mesh/server", "198.18.100.1:80", "[fd00:7ac1:100::1]:80", "mtls"},
		{"service with a named port", "mesh/client", "mesh/near", "198.18.100.2:80", "[fd00:7ac1:100::2]:80", "local"},
		{"out of the mesh", "mesh/client", "outside/target", "198.18.2.30", "fd00:7ac1:2::30", "plain"},
		{"into the mesh", "outside/plain", "mesh/server", "198.18.2.10", "fd00:7ac1:2::10", ""},
		{"to itself by its own address", "mesh/client", "mesh/client", "198.18.1.10", "fd00:7ac1:1::10", ""},
		{"to itself by its service", "mesh/client", "mesh/client", "198.18.100.4:80", "[fd00:7ac1:100::4]:80", "local"},
		{"to itself by loopback", "mesh/client", "mesh/client", "127.0.0.1", "::1", ""},
	} {
		for family, to := range []string{path.v4, path.v6} {
			if _, _, err := net.SplitHostPort(to); err != nil {
				to = net.JoinHostPort(to, "8080")
			}
			t.Run(fmt.Sprintf("%s, IPv%d", path.name, 4+2*family), func(t *testing.T) {
				seen, err := m.Call(path.from, to)
				if err != nil {
					t.Fatal(err)
				}
				want := m.Pod(path.from).Addresses[family].String()
				if strings.HasSuffix(path.name, "loopback") {
					want = strings.TrimSuffix(strings.Trim(to, "["), ":8080")
					want = strings.Trim(want, "]")
				}
				if seen != want {
					t.Errorf("the server saw the client at %s, want %s", seen, want)
				}
				if path.security == "" {
					return
				}
				m.Eventually("the client's node knows the ended connection", func() error {
					for _, c := range m.Connections("a", "ended", path.from, path.to) {
						if c.Direction == "outbound" && c.Original.String() == to {
							if c.Security != path.security {
								t.Errorf("it travelled as %q, want %q", c.Security, path.security)
							}
							return nil
						}
					}
					return fmt.Errorf("no connection from %s to %s", path.from, to)
				})
			})
		}
	}
}
