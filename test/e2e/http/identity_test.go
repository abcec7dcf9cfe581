package http

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// Applications are told who calls, by the proxy alone: what callers say of
// themselves is taken off, and policies do not see it either.
func TestIdentityIsTold(t *testing.T) {
	m := e2e.StartWith(t, world.Config{ProxyArgs: []string{"--tell-identity"}},
		object("AuthorizationPolicy", "forged", "{action: DENY, rules: [{when: [{key: 'request.headers[x-forwarded-client-cert]', values: ['*boss*']}]}]}"))
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, r *http.Request) {
		var told []string
		for name, values := range r.Header {
			if strings.Contains(strings.ToLower(name), "client") {
				told = append(told, name+": "+strings.Join(values, " and "))
			}
		}
		slices.Sort(told)
		fmt.Fprint(w, strings.Join(told, "; "))
	})
	const mtls = "X-Forwarded-Client-Cert: By=spiffe://cluster.local/ns/mesh/sa/server;URI=spiffe://cluster.local/ns/mesh/sa/client"
	for pod, want := range map[string]string{"mesh/client": mtls, "outside/plain": ""} {
		for version := 1; version <= 2; version++ {
			c := client(t, m, pod, version)
			for _, header := range [][]string{
				{"Accept: */*"},
				{"X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/mesh/sa/boss"},
				{"X-Forwarded-Client-Cert: URI=boss", "X-Forwarded-Client-Cert: URI=bosses"},
				{"x_forwarded-client_cert: URI=boss"},
			} {
				if status, got, _ := call(t, c, "GET", "http://"+server+"/", header...); status != 200 || got != want {
					t.Errorf("%s, HTTP/%d, %s: %d %q, want 200 %q", pod, version, header, status, got, want)
				}
			}
		}
	}
}

// The original client's address is what a trusted proxy says it is, and of
// everybody else the address that they come from.
func TestForwardedFor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mesh.yaml")
	const config = "defaultConfig: {gatewayTopology: {numTrustedProxies: 1}}\ntrustedProxies: [cluster.local/ns/mesh/sa/client]\n"
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	m := e2e.StartWith(t, world.Config{ControlArgs: []string{"--mesh-config", file}},
		object("AuthorizationPolicy", "office", "{action: ALLOW, rules: [{from: [{source: {remoteIpBlocks: [192.0.2.0/24]}}]}]}"))
	serve(t, m, "mesh/server", ":8080", func(http.ResponseWriter, *http.Request) {})
	for _, test := range []struct {
		name, pod, forwarded string
		want                 int
	}{
		{"by a trusted proxy", "mesh/client", "192.0.2.7", 200},
		{"by a trusted proxy, of another client", "mesh/client", "198.51.100.7", 403},
		{"forged in front of what a trusted proxy says", "mesh/client", "192.0.2.7, 198.51.100.7", 403},
		{"by an identity that is not trusted", "mesh/near", "192.0.2.7", 403},
		{"by nobody", "outside/plain", "192.0.2.7", 403},
	} {
		for version := 1; version <= 2; version++ {
			c := client(t, m, test.pod, version)
			if status, _, _ := call(t, c, "GET", "http://"+server+"/", "X-Forwarded-For: "+test.forwarded); status != test.want {
				t.Errorf("said %s, HTTP/%d: %d, want %d", test.name, version, status, test.want)
			}
		}
	}
}
