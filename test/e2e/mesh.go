// Package e2e runs the whole of Tacit, real programs in a world of network
// namespaces, for the tests in the packages below it.
//
// It starts the mesh of testdata, gives tests servers and clients inside its
// pods, and looks at it from outside: connections, metrics, logs. What does
// not belong here: the tests themselves, and knowledge of Tacit's insides.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"encoding/json"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/test/world"
)

// Patience bounds each wait of a test for something that is about to happen.
const Patience = 20 * time.Second

// Main is a package's TestMain: it builds the programs, with the race detector
// if the tests have it, and runs the tests in a world.
func Main(m *testing.M) {
	world.Enter(m.Run, "./cmd/tacitd", "./cmd/tacit-agent", "./cmd/tacit-proxy", "./cmd/tacit")
}

// Mesh is a running cluster.
type Mesh struct {
	*world.World
	t testing.TB
}

// Start runs the mesh of test/e2e/testdata, with further manifests on top. At
// the end of the test it is taken down; data races in its programs and
// programs left over fail the test, and if it failed the ends of all logs are
// shown.
func Start(t testing.TB, manifests ...string) *Mesh {
	return StartWith(t, world.Config{}, manifests...)
}

// StartWith is Start with arguments for the programs or, where the config names
// them, with other manifests than those of testdata.
func StartWith(t testing.TB, config world.Config, manifests ...string) *Mesh {
	t.Helper()
	m := Build(t, config, manifests...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*Patience)
	defer cancel()
	if err := m.World.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return m
}

// Build is StartWith without starting any program.
func Build(t testing.TB, config world.Config, manifests ...string) *Mesh {
	t.Helper()
	if config.Manifests == "" {
		config.Manifests = "../testdata"
	}
	w, err := world.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	m := &Mesh{World: w, t: t}
	t.Cleanup(m.takeDown)
	for _, yaml := range manifests {
		m.MustApply(yaml)
	}
	return m
}

func (m *Mesh) takeDown() {
	programs := []*world.Program{m.Control()}
	for _, n := range m.Nodes() {
		programs = append(programs, n.Agent(), n.Proxy())
	}
	for _, p := range programs {
		if p != nil {
			m.inspect(p)
		}
	}
	if err := m.Close(); err != nil {
		m.t.Error(err)
	}
}

func (m *Mesh) inspect(p *world.Program) {
	log, err := os.ReadFile(p.Log)
	if err != nil {
		m.t.Error(err)
	}
	text := string(log)
	for _, bad := range []string{"DATA RACE", "\npanic: ", "\nfatal error: "} {
		if i := strings.Index(text, bad); i >= 0 {
			m.t.Errorf("%s:%s", p.Name, text[i:min(len(text), i+6000)])
		}
	}
	if m.t.Failed() {
		m.t.Logf("%s ends with:\n%s", p.Name, text[max(0, len(text)-4000):])
	}
}

// MustApply adds or replaces objects.
func (m *Mesh) MustApply(yaml string) {
	m.t.Helper()
	if err := m.Apply(yaml); err != nil {
		m.t.Fatal(err)
	}
}

// Context ends with the test, or after Patience.
func (m *Mesh) Context() context.Context {
	ctx, cancel := context.WithTimeout(m.t.Context(), Patience)
	m.t.Cleanup(cancel)
	return ctx
}

// Eventually polls for a state that offers no event.
func (m *Mesh) Eventually(what string, check func() error) {
	m.t.Helper()
	if err := world.Poll(m.Context(), check); err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}

// Serve runs a server in a pod, a goroutine for each connection, which is
// closed when handle returns. It ends with the test.
func (m *Mesh) Serve(pod, address string, handle func(*net.TCPConn)) {
	m.t.Helper()
	l, err := m.Pod(pod).Listen(address)
	if err != nil {
		m.t.Fatal(err)
	}
	var serving sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]struct{}{}
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = struct{}{}
			mu.Unlock()
			serving.Go(func() {
				handle(c.(*net.TCPConn))
				_ = c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	m.t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
}

// Echo sends back what it gets, and FIN after FIN, behind a first line that
// names the address it saw the client at.
func Echo(c *net.TCPConn) {
	_, _ = fmt.Fprintln(c, c.RemoteAddr().(*net.TCPAddr).IP)
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// Dial connects from a pod; the connection is closed at the end of the test.
func (m *Mesh) Dial(pod, address string) (*net.TCPConn, error) {
	c, err := m.Pod(pod).Dial(m.Context(), address)
	if err == nil {
		m.t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// Call connects from a pod to an Echo server, sends a text with FIN, and
// returns the client's address as the server saw it. Anything but the very
// text and FIN as the answer is an error.
func (m *Mesh) Call(pod, address string) (seen string, err error) {
	c, err := m.Pod(pod).Dial(m.Context(), address)
	if err != nil {
		return "", err
	}
	return Exchange(c)
}

// Exchange is [Mesh.Call] on a connection to an Echo server, which it closes.
func Exchange(c *net.TCPConn) (seen string, err error) {
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(Patience)); err != nil {
		return "", err
	}
	const text = "four score and seven"
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	// After a reset there is nothing to shut down, and reading tells of it.
	if err := c.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
		return "", err
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	seen, echoed, _ := strings.Cut(string(answer), "\n")
	if echoed != text {
		return seen, fmt.Errorf("the echo is %q, want %q", echoed, text)
	}
	return seen, nil
}

// Connections asks a node's proxy: "live" for live connections, "ended" or
// "denied" for those.
func (m *Mesh) Connections(node, which, from, to string) []admin.Connection {
	m.t.Helper()
	query := url.Values{which: {""}, "from": {from}, "to": {to}}
	var answer struct{ Connections []admin.Connection }
	if err := m.Admin(node, "/connections?"+query.Encode(), &answer); err != nil {
		m.t.Fatal(err)
	}
	return answer.Connections
}

// Admin asks a node's proxy on its admin socket.
func (m *Mesh) Admin(node, path string, answer any) error {
	body, err := m.AdminText(node, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, answer)
}

// AdminText is Admin for an answer as it stands.
func (m *Mesh) AdminText(node, path string) ([]byte, error) {
	socket := m.Node(node).AdminSocket()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	return fetch(m.Context(), &http.Client{Transport: transport}, "http://proxy"+path)
}

// Metric sums the samples of a metric of a node's proxy whose labels include
// the given ones, written as "name=value". Histograms count observations.
func (m *Mesh) Metric(node, name string, labels ...string) float64 {
	m.t.Helper()
	body, err := fetch(m.Context(), m.Node(node).HTTP(), m.Node(node).MetricsURL())
	if err != nil {
		m.t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(body)))
	if err != nil {
		m.t.Fatal(err)
	}
	sum := 0.0
	for _, sample := range families[name].GetMetric() {
		has := map[string]bool{}
		for _, l := range sample.GetLabel() {
			has[l.GetName()+"="+l.GetValue()] = true
		}
		fits := true
		for _, l := range labels {
			fits = fits && has[l]
		}
		if fits {
			sum += sample.GetCounter().GetValue() + sample.GetGauge().GetValue() + float64(sample.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

func fetch(ctx context.Context, client *http.Client, address string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", address, response.Status, body)
	}
	return body, err
}
