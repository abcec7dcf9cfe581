package lifecycle

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// readiness is what a node's proxy answers to a probe.
func readiness(m *e2e.Mesh, node string) (status int, text string, err error) {
	url := strings.Replace(m.Node(node).MetricsURL(), "15020/metrics", "15021/healthz/ready", 1)
	request, err := http.NewRequestWithContext(m.Context(), http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := m.Node(node).HTTP().Do(request)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// awaitUnready waits for a readiness that says what is missing.
func awaitUnready(m *e2e.Mesh, node, missing string) {
	m.Eventually(fmt.Sprintf("node %s misses %q", node, missing), func() error {
		status, text, err := readiness(m, node)
		if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(text, missing)) {
			err = fmt.Errorf("%d: %s", status, text)
		}
		return err
	})
}

// Whatever comes up first waits for the rest, and says for what.
func TestOrder(t *testing.T) {
	m := e2e.Build(t, world.Config{})
	serveEverywhere(m)
	a, b := m.Node("a"), m.Node("b")
	// A first run of the control plane makes the roots that proxies start with.
	if err := errors.Join(m.StartControl(m.Context()), m.Control().Stop(m.Context())); err != nil {
		t.Fatal(err)
	}

	// On a, the proxy comes first; on b, the agent; the control plane last.
	ready := make(chan error, 2)
	go func() { ready <- a.StartProxy(m.Context()) }()
	awaitUnready(m, "a", "tacit-agent has not named")
	if err := errors.Join(a.StartAgent(m.Context()), b.StartAgent(m.Context())); err != nil {
		t.Fatal(err)
	}
	awaitUnready(m, "a", "the control plane has not sent")
	logs(t, m, b.Agent(), 0, "pod captured", "mesh/server2")
	logs(t, m, b.Agent(), 0, `pod captured`, `mesh/server"`)
	waiting, err := m.Dial("mesh/server", "198.18.2.11:8080") // of a pod without any proxy
	if err != nil {
		t.Fatal(err)
	}
	go func() { ready <- b.StartProxy(m.Context()) }()
	awaitUnready(m, "b", "the control plane has not sent")
	if err := m.StartControl(m.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-ready; err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e2e.Exchange(waiting); err != nil {
		t.Errorf("a connection from before the proxy: %v", err)
	}
	for _, p := range everywhere {
		if _, err := m.Call(p.from, p.to); err != nil {
			t.Errorf("from %s to %s: %v", p.from, p.to, err)
		}
	}
}
