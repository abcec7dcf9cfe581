package traffic

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
)

const endpoints = `
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: mesh}
spec:
  clusterIPs: ["198.18.100.10", "fd00:7ac1:100::10"]
  selector: {app: nobody}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: sticky, namespace: mesh}
spec:
  clusterIPs: ["198.18.100.11", "fd00:7ac1:100::11"]
  selector: {app: pair}
  sessionAffinity: ClientIP
  ports: [{port: 80, targetPort: 8081}]
---
apiVersion: v1
kind: Service
metadata: {name: beside, namespace: mesh}
spec:
  clusterIPs: ["198.18.100.12", "fd00:7ac1:100::12"]
  ports: [{port: 80, targetPort: 8082}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: beside-4, namespace: mesh, labels: {kubernetes.io/service-name: beside}}
addressType: IPv4
ports: [{name: "", port: 8082}]
endpoints:
- {addresses: ["198.18.1.20"]}
- {addresses: ["198.18.1.11"]}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: mesh}
spec:
  clusterIPs: ["198.18.100.13", "fd00:7ac1:100::13"]
  internalTrafficPolicy: Local
  ports: [{port: 80, targetPort: 8083}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: local-4, namespace: mesh, labels: {kubernetes.io/service-name: local}}
addressType: IPv4
ports: [{name: "", port: 8083}]
endpoints:
- {addresses: ["198.18.1.20"]}
- {addresses: ["198.18.2.10"]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: mesh}
spec:
  clusterIPs: ["198.18.100.14", "fd00:7ac1:100::14"]
  internalTrafficPolicy: Local
  ports: [{port: 80, targetPort: 8083}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: elsewhere-4, namespace: mesh, labels: {kubernetes.io/service-name: elsewhere}}
addressType: IPv4
ports: [{name: "", port: 8083}]
endpoints:
- {addresses: ["198.18.2.10"]}
---
apiVersion: v1
kind: Service
metadata: {name: close, namespace: mesh}
spec:
  clusterIPs: ["198.18.100.15", "fd00:7ac1:100::15"]
  trafficDistribution: PreferSameNode
  ports: [{name: both, port: 80, targetPort: 8083}, {name: far, port: 81, targetPort: 8084}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: close-4, namespace: mesh, labels: {kubernetes.io/service-name: close}}
addressType: IPv4
ports: [{name: both, port: 8083}, {name: far, port: 8084}]
endpoints:
- {addresses: ["198.18.1.20"]}
- {addresses: ["198.18.2.10"]}
---
apiVersion: v1
kind: Service
metadata: {name: leaving, namespace: mesh}
spec:
  clusterIPs: ["198.18.100.16", "fd00:7ac1:100::16"]
  ports: [{name: both, port: 80, targetPort: 8083}, {name: old, port: 81, targetPort: 8084}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: leaving-4, namespace: mesh, labels: {kubernetes.io/service-name: leaving}}
addressType: IPv4
ports: [{name: both, port: 8083}, {name: old, port: 8084}]
endpoints:
- {addresses: ["198.18.1.11"], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: ["198.18.1.20"]}
`

// calls is enough that a random choice of two falls on each.
const calls = 40

// ask calls a server that says who it is.
func ask(t *testing.T, m *e2e.Mesh, from, to string) string {
	t.Helper()
	c, err := m.Dial(from, to)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(e2e.Patience))
	name, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("from %s to %s: %v", from, to, err)
	}
	return string(name)
}

// Which endpoint of a service a connection goes to.
func TestEndpoints(t *testing.T) {
	m := e2e.Start(t, endpoints)
	for pod, ports := range map[string][]int{
		"mesh/server2": {8080, 8081}, "mesh/server3": {8080, 8081},
		nearPod: {8083}, serverPod: {8083, 8084}, "mesh/twin": {8083, 8084},
	} {
		for _, port := range ports {
			m.Serve(pod, fmt.Sprint(":", port), func(c *net.TCPConn) { _, _ = io.WriteString(c, pod) })
		}
	}
	asked := func(from, to string) map[string]int {
		got := map[string]int{}
		for range calls {
			got[ask(t, m, from, to)]++
		}
		return got
	}

	if got := asked("mesh/client", "198.18.100.3:80"); len(got) != 2 {
		t.Errorf("two endpoints, of which none is better, were called %v times", got)
	}
	for _, from := range []string{"mesh/client", "mesh/twin", nearPod} {
		if got := asked(from, "198.18.100.11:80"); len(got) != 1 {
			t.Errorf("affinity: %s called %v", from, got)
		}
	}
	for _, c := range []struct{ what, from, to, want string }{
		{"internalTrafficPolicy: Local", "mesh/client", "198.18.100.13:80", nearPod},
		{"internalTrafficPolicy: Local", "mesh/server2", "198.18.100.13:80", serverPod},
		{"trafficDistribution: PreferSameNode", "mesh/client", "198.18.100.15:80", nearPod},
		{"trafficDistribution: PreferSameNode", "mesh/server2", "198.18.100.15:80", serverPod},
		{"trafficDistribution: PreferSameNode, which does not listen", "mesh/client", "198.18.100.15:81", serverPod},
		{"a terminating endpoint beside another", "mesh/client", "198.18.100.16:80", nearPod},
		{"a terminating endpoint beside one that does not listen", "mesh/client", "198.18.100.16:81", "mesh/twin"},
	} {
		if got := asked(c.from, c.to); got[c.want] != calls {
			t.Errorf("%s: from %s %v were called, want %s alone", c.what, c.from, got, c.want)
		}
	}
}

// A connection that no one takes ends with RST, never as if it were complete.
func TestNobodyThere(t *testing.T) {
	m := e2e.Start(t, endpoints)
	m.Serve(serverPod, ":8083", e2e.Echo) // which no service on another node leads to
	for _, c := range []struct{ what, from, to string }{
		{"dead port, across nodes", "mesh/client", "198.18.2.10:9"},
		{"dead port, across nodes, IPv6", "mesh/client", "[fd00:7ac1:2::10]:9"},
		{"dead port, same node", "mesh/client", "198.18.1.20:9"},
		{"dead port, into the mesh", "outside/plain", "198.18.2.10:9"},
		{"dead port, out of the mesh", "mesh/client", "198.18.2.30:9"},
		{"dead port of a service", "mesh/client", "198.18.100.3:80"},
		{"service without endpoints", "mesh/client", "198.18.100.10:80"},
		{"service without endpoints, IPv6", "mesh/client", "[fd00:7ac1:100::10]:80"},
		{"service with endpoints on other nodes alone", "mesh/client", "198.18.100.14:80"},
		{"port that the service does not have", "mesh/client", "198.18.100.1:81"},
	} {
		for _, early := range []string{"", "is anybody there?"} {
			t.Run(c.what+map[bool]string{true: ", data sent"}[early != ""], func(t *testing.T) {
				conn, err := m.Dial(c.from, c.to)
				if errors.Is(err, syscall.ECONNRESET) {
					return // already, but not refused
				}
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.SetDeadline(time.Now().Add(e2e.Patience))
				if _, err := io.WriteString(conn, early); errors.Is(err, syscall.ECONNRESET) {
					return // what has been told once is not told again
				}
				hearReset(t, conn)
			})
		}
	}
}

// An endpoint that does not listen costs a service's clients nothing: the next
// one gets what they have sent meanwhile, once and whole.
func TestNextEndpoint(t *testing.T) {
	m := e2e.Start(t, endpoints)
	serveStreams(t, m, "mesh/server2", ":8080")
	serveStreams(t, m, nearPod, ":8082")
	for _, c := range []struct{ what, to string }{
		{"across nodes", "198.18.100.3:80"},
		{"across nodes, IPv6", "[fd00:7ac1:100::3]:80"},
		{"same node", "198.18.100.12:80"},
	} {
		t.Run(c.what, func(t *testing.T) {
			for i := range calls {
				// Less, about as much, and more than can be kept to send again.
				s := streams{Seed: uint64(i), Up: []uint64{100, 60_000, 66_000, 1 << 20}[i%4], Down: 10_000}
				conn, err := m.Dial("mesh/client", c.to)
				if err == nil {
					err = s.begin(conn)
				}
				if err == nil {
					err = talk(conn, s.up(), s.down())
				}
				if err != nil {
					t.Fatalf("call %d: %v", i, err)
				}
			}
		})
	}
}
