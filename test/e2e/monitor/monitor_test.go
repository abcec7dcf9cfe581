// Package monitor tests dashboards and alerts with a real Prometheus, which
// scrapes the demo's world: every panel shows something, and every alert fires
// for what it is about and for nothing else.
package monitor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/internal/httpserve"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { e2e.Main(m) }

const (
	chart = "../../../deploy/chart/monitoring"
	// patience bounds the waits for alerts, which take their time by design.
	patience = 2 * time.Minute

	web    = "198.18.2.10:8080"
	redis  = "198.18.2.20:6379"
	direct = "198.18.2.32:5432" // a database outside of the mesh

	tunnels = "198.18.2.10:15008" // where the web pod's proxy takes mTLS

	readOnly = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: read-only, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules:
  - to: [{operation: {notMethods: [GET]}}]
`
)

// alerts that are made to fire one by one: the last needs the mesh broken.
var alerts = []string{
	"TacitBypassed", "TacitCertificateNotRenewed", "TacitClockSkew", "TacitDenialSpike", "TacitDriftRepaired", "TacitHandshakesFail",
	"TacitPlainUnderStrict", "TacitRootEnds",
}

func TestDashboardsAndAlerts(t *testing.T) {
	m := e2e.StartWith(t, world.Config{
		Manifests:   "../../../deploy/demo",
		ControlArgs: []string{"--metrics", "198.18.0.1:15014"},
		AgentArgs:   []string{"--metrics", ":15013"},
	}, readOnly)
	var sick atomic.Bool
	targets := map[string][]string{"tacitd": {"198.18.0.1:15014"}, "other": {startSick(t, m, &sick)}}
	for _, n := range m.Nodes() {
		targets["tacit-proxy"] = append(targets["tacit-proxy"], net.JoinHostPort(n.Addresses[0].String(), "15020"))
		targets["tacit-agent"] = append(targets["tacit-agent"], net.JoinHostPort(n.Addresses[0].String(), "15013"))
	}
	p := startPrometheus(t, m, targets)
	ordinary(t, m)
	p.eventually("ten scrapes of everything", func() error {
		got, err := p.query("min(count_over_time((up == 1)[2m:1s])) >= 10 and count(up == 1) == 6")
		if err == nil && len(got) != 1 {
			err = errors.New("not yet")
		}
		return err
	})
	// On a slow machine a scrape may be late, which is no fault of the rules.
	if got, err := p.query(`last_over_time(ALERTS{alertname!="TacitProxyAway", alertstate="firing"}[5m])`); err != nil || len(got) > 0 {
		t.Errorf("while nothing is wrong: %v, %v", got, err)
	}

	sick.Store(true)
	trouble(t, m)
	suspend := exec.CommandContext(m.Context(), m.Executable("tacit"), "bypass", "shop/worker", "--policy-only", "--reason=a drill", "--from="+m.Manifests())
	if out, err := suspend.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", suspend.Args, err, out)
	}
	pod := m.Pod("shop/reports")
	if out, err := pod.Command(m.Context(), "iptables", "-t", "nat", "-F", "TACIT_OUTPUT").CombinedOutput(); err != nil {
		t.Fatalf("iptables: %v: %s", err, out)
	}
	empty := panels(t)
	p.eventually("data in every panel", func() error { return p.fill(empty) })
	p.eventually("alerts", func() error { return p.fired(alerts...) })

	if err := m.Node("b").Proxy().Kill(); err != nil {
		t.Fatal(err)
	}
	p.eventually("the alert about the proxy", func() error {
		got, err := p.query(`ALERTS{alertname="TacitProxyAway", alertstate="firing", job="tacit-agent"} and on (instance, job) (up == 1)`)
		if err == nil && len(got) != 1 {
			err = fmt.Errorf("%d agents miss their proxy, want one", len(got))
		}
		return err
	})
}

func (p *prometheus) eventually(what string, check func() error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	if err := world.Poll(ctx, check); err != nil {
		p.t.Fatalf("waiting for %s: %v", what, err)
	}
}

// fill takes out the queries that have data; an error names those that are left.
func (p *prometheus) fill(empty map[string]string) error {
	var left []error
	for where, expr := range empty {
		switch got, err := p.query(expr); {
		case err != nil:
			left = append(left, fmt.Errorf("%s: %w", where, err))
		case len(got) == 0:
			left = append(left, fmt.Errorf("%s: no data: %s", where, expr))
		default:
			delete(empty, where)
		}
	}
	return errors.Join(left...)
}

// fired: an alert may be over while others are waited for.
func (p *prometheus) fired(names ...string) error {
	got, err := p.query(`count by (alertname) (last_over_time(ALERTS{alertstate="firing"}[10m]))`)
	if err != nil {
		return err
	}
	var firing []string
	for _, s := range got {
		firing = append(firing, s.labels["alertname"])
	}
	for _, name := range names {
		if !slices.Contains(firing, name) {
			return fmt.Errorf("%s has not fired, only %v", name, firing)
		}
	}
	return nil
}

// startSick serves metrics of a proxy that is well, until it is told to be sick:
// its clock goes wrong, its certificate should be renewed, its roots end soon.
// That takes days, or a machine of its own, to happen to a real one.
func startSick(t *testing.T, m *e2e.Mesh, sick *atomic.Bool) string {
	t.Helper()
	recorder := telemetry.New(telemetry.Options{
		Now: func() time.Time {
			if sick.Load() {
				return time.Now().Add(-time.Minute)
			}
			return time.Now()
		},
		Certificates: func() []telemetry.Certificate {
			c := telemetry.Certificate{Identity: model.Identity{TrustDomain: "cluster.local", Namespace: "far", ServiceAccount: "away"},
				NotAfter: time.Now().Add(24 * time.Hour), Renewal: time.Now().Add(12 * time.Hour), Roots: time.Now().Add(8 * 24 * time.Hour)}
			if sick.Load() {
				c.Renewal, c.Roots = time.Now().Add(-time.Minute), time.Now().Add(6*24*time.Hour)
			}
			return []telemetry.Certificate{c}
		},
	})
	var listener net.Listener
	err := m.Node("a").Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() { _ = httpserve.Run(ctx, listener, recorder.Handler()) })
	t.Cleanup(func() { cancel(); serving.Wait() })
	return listener.Addr().String()
}

// keepDoing does something ten times a second, or as often as it can be done,
// until the end of the test.
func keepDoing(t *testing.T, what func(context.Context)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var doing sync.WaitGroup
	doing.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			what(ctx)
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() { cancel(); doing.Wait() })
}

// Nobody here cares how calls come out: what Prometheus says of them is looked
// at.

// ordinary is what goes on in a mesh in which nothing is wrong.
func ordinary(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	keepCalling(t, m, "shop/frontend", web, "GET / HTTP/1.0\r\n\r\n")
	keepCalling(t, m, "shop/worker", redis, "PING\r\nQUIT\r\n")
	keepCalling(t, m, "shop/frontend", direct, "hello")
}

// trouble is calls that are denied, of each kind, and of one who poses as a proxy.
func trouble(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	for range 4 { // enough for a spike, on a slow machine too
		keepCalling(t, m, "shop/worker", web, "GET / HTTP/1.0\r\n\r\n")
	}
	keepCalling(t, m, "outside/visitor", web, "GET / HTTP/1.0\r\n\r\n")
	keepCalling(t, m, "shop/frontend", web, "DELETE / HTTP/1.0\r\n\r\n")
	stranger := identitytest.NewCA(t).Issue(t, model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "frontend"})
	config := &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{*stranger.Certificate},
	}
	keepDoing(t, func(ctx context.Context) {
		if c, err := m.Pod("outside/visitor").Dial(ctx, tunnels); err == nil {
			talk(ctx, tls.Client(c, config), "")
		}
	})
}

// keepCalling calls an address ten times a second.
func keepCalling(t *testing.T, m *e2e.Mesh, pod, address, text string) {
	t.Helper()
	keepDoing(t, func(ctx context.Context) {
		if c, err := m.Pod(pod).Dial(ctx, address); err == nil {
			talk(ctx, c, text)
		}
	})
}

// talk says something and listens until the other side has ended.
func talk(ctx context.Context, c net.Conn, text string) {
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(e2e.Patience))
	_, _ = io.WriteString(c, text)
	_, _ = io.Copy(io.Discard, c)
}
