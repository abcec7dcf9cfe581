package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// skipping is a pod of testdata that skips port 8080 in one direction.
func skipping(name, node, account, v4, v6, direction string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: mesh
  annotations: {tacit.mesh/redirection: enabled, tacit.mesh/skip-%s-ports: "8080"}
spec:
  nodeName: %s
  serviceAccountName: %s
  containers: [{name: app, image: none}]
status:
  podIPs: [{ip: "%s"}, {ip: "%s"}]
`, name, direction, node, account, v4, v6)
}

const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: mesh}
spec: {mtls: {mode: STRICT}}
`

// A port may be skipped by the client, by the server, by both and by none.
// What skips is not seen by a proxy; what comes without an identity because
// its client skips is denied under STRICT, with that reason.
func TestSkips(t *testing.T) {
	twin := skipping("twin", "a", "client", "198.18.1.11", "fd00:7ac1:1::11", "outbound")
	server2 := skipping("server2", "b", "server", "198.18.2.11", "fd00:7ac1:2::11", "inbound")
	for _, mode := range []string{"PERMISSIVE", "STRICT"} {
		manifests := []string{twin, server2}
		if mode == "STRICT" {
			manifests = append(manifests, strict)
		}
		t.Run(mode, func(t *testing.T) {
			m := e2e.Start(t, manifests...)
			m.Serve(serverPod, ":8080", e2e.Echo)
			m.Serve("mesh/server2", ":8080", e2e.Echo)
			for _, c := range []struct {
				name, from, to    string
				outbound, inbound string // as what the proxies see it; "" if they do not
				denied            bool
			}{
				{"none", "mesh/client", "mesh/server", "mtls", "mtls", false},
				{"the server", "mesh/client", "mesh/server2", "skipped", "", false},
				{"the client", "mesh/twin", "mesh/server", "", "plain", mode == "STRICT"},
				{"both", "mesh/twin", "mesh/server2", "", "", false},
			} {
				for family := range 2 {
					t.Run(fmt.Sprintf("%s, IPv%d", c.name, 4+2*family), func(t *testing.T) {
						mark := m.Node("b").Proxy().Mark()
						client := m.Pod(c.from).Addresses[family].String()
						address, err := m.Call(c.from, netip.AddrPortFrom(m.Pod(c.to).Addresses[family], 8080).String())
						switch {
						case c.denied && !errors.Is(err, syscall.ECONNRESET):
							t.Errorf("call: %v, want a reset", err)
						case !c.denied && (err != nil || address != client):
							t.Errorf("the server saw %q, want %s: %v", address, client, err)
						}
						want := ""
						if c.outbound != "" {
							want += " a:outbound:" + c.outbound
						}
						if c.inbound != "" {
							want += " b:inbound:" + c.inbound
						}
						m.Eventually("what the proxies saw", func() error {
							if now := seen(m, client, c.to); now != want {
								return fmt.Errorf("%q, want %q", now, want)
							}
							return nil
						})
						if c.denied {
							_, err := m.Node("b").Proxy().WaitLog(m.Context(), mark, func(line string) bool {
								return strings.Contains(line, `"reason":"client_skips_port"`) && strings.Contains(line, client)
							})
							if err != nil {
								t.Error(err)
							}
						}
					})
				}
			}
		})
	}
}

// seen is how the proxies saw connections from an address to a pod.
func seen(m *e2e.Mesh, from, to string) string {
	var b strings.Builder
	for _, node := range []string{"a", "b"} {
		for _, c := range m.Connections(node, "ended", "", to) {
			if c.Source.Address.Addr().String() == from {
				_, _ = fmt.Fprintf(&b, " %s:%s:%s", node, c.Direction, c.Security)
			}
		}
	}
	return b.String()
}
