package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/test/world"
)

// deciders are the pods that policies about requests cover: one altogether, and
// the HTTP port of one whose other ports show that they pay nothing for it.
var deciders = []string{"http-server", "server"}

const requestPolicies = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: http-server, namespace: meshed}
spec:
  selector: {matchLabels: {app: http-server}}
  action: ALLOW
  rules:
    - from: [{source: {principals: ["cluster.local/ns/meshed/sa/client", "cluster.local/ns/meshed/sa/neighbour"]}}]
      to: [{operation: {methods: [GET, POST]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: server-http, namespace: meshed}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules:
    - to: [{operation: {notMethods: [GET, POST], ports: ["7003"]}}]
`

// decideOn makes what puts policies about requests in force, or takes them away:
// once, while it stays so.
func (m *maker) decideOn(requests bool) func(context.Context) error {
	return func(ctx context.Context) error {
		if m.deciding == requests {
			return nil
		}
		m.deciding = requests
		if err := m.applyPolicies(requests); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, settleTimeout)
		defer cancel()
		for _, pod := range deciders {
			if err := world.Poll(ctx, func() error { return m.decided(ctx, pod, requests) }); err != nil {
				return fmt.Errorf("policies about requests to pod %s: %w", pod, err)
			}
		}
		return nil
	}
}

func (m *maker) applyPolicies(there bool) error {
	if there {
		return m.world.Apply(requestPolicies)
	}
	return errors.Join(m.world.Delete("AuthorizationPolicy", "meshed/http-server"), m.world.Delete("AuthorizationPolicy", "meshed/server-http"))
}

// decided reports whether a method that no policy allows is denied, or answered
// where no policy is.
func (m *maker) decided(ctx context.Context, pod string, want bool) error {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return m.world.Pod("meshed/client").Dial(ctx, address)
	}}
	at := net.JoinHostPort(m.world.Pod("meshed/"+pod).Address().String(), strconv.Itoa(load.HTTPPort))
	request, err := http.NewRequestWithContext(ctx, http.MethodDelete, "http://"+at+"/", nil)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	if denied := response.StatusCode == http.StatusForbidden; denied != want {
		err = fmt.Errorf("answered with %s", response.Status)
	}
	_ = response.Body.Close()
	return err
}
