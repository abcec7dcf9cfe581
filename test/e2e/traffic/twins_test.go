package traffic

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// Of two pods with one service account, port 8080 is for the one alone and
// port 8081 for all but it.
const byAddress = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: mesh}
spec:
  action: ALLOW
  rules:
  - from: [{source: {ipBlocks: ["198.18.1.10/32", "fd00:7ac1:1::10"]}}]
    to: [{operation: {ports: ["8080"]}}]
  - to: [{operation: {ports: ["8081"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: mesh}
spec:
  action: DENY
  rules:
  - from: [{source: {ipBlocks: ["198.18.1.10", "fd00:7ac1:1::10/128"]}}]
    to: [{operation: {ports: ["8081"]}}]
`

// Pods are told apart by their addresses, though their identities are the
// same, across nodes and on the same one.
func TestTwinsByAddress(t *testing.T) {
	m := e2e.Start(t, byAddress)
	for _, pod := range []string{serverPod, nearPod} {
		m.Serve(pod, ":8080", e2e.Echo)
		m.Serve(pod, ":8081", e2e.Echo)
	}
	for _, server := range []string{"198.18.2.10", "fd00:7ac1:2::10", "198.18.1.20", "fd00:7ac1:1::20"} {
		for _, c := range []struct {
			from, port string
			allowed    bool
		}{
			{"mesh/client", "8080", true},
			{"mesh/twin", "8080", false},
			{"mesh/client", "8081", false},
			{"mesh/twin", "8081", true},
		} {
			_, err := m.Call(c.from, net.JoinHostPort(server, c.port))
			if c.allowed && err != nil || !c.allowed && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("from %s to port %s of %s, allowed %v: %v", c.from, c.port, server, c.allowed, err)
			}
		}
	}
}

// Pods with one service account never share a connection between proxies:
// the server sees each at its own address, however many call at once.
func TestTwinsShareNothing(t *testing.T) {
	m := e2e.Start(t)
	servers := []string{serverTo, serverTo6, nearTo, nearTo6, "198.18.100.1:80"}
	m.Serve(serverPod, ":8080", e2e.Echo)
	m.Serve(nearPod, ":8080", e2e.Echo)
	var all errgroup.Group
	all.SetLimit(40)
	for i := range 400 {
		all.Go(func() error {
			from, to := []string{"mesh/client", "mesh/twin"}[i%2], servers[i/2%len(servers)]
			seen, err := m.Call(from, to)
			own := m.Pod(from).Addresses
			if err == nil && seen != own[0].String() && seen != own[1].String() {
				err = fmt.Errorf("the server saw %s", seen)
			}
			if err != nil {
				return fmt.Errorf("from %s to %s: %w", from, to, err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
}
