// Package identity tests where the certificates of a mesh may come from, and
// what happens while that is away. What does not belong here: what identities
// may do (test/e2e/policy).
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/servers"
	"github.com/tacit-mesh/tacit/test/world"
)

func TestMain(m *testing.M) { e2e.Main(m) }

const (
	server        = "198.18.2.10:8080"
	serverTunnels = "198.18.2.10:15008"
)

// startSPIRE runs the mesh with certificates from a SPIRE agent, the same one
// for both nodes.
func startSPIRE(t *testing.T, life time.Duration) (*e2e.Mesh, *servers.SPIRE) {
	t.Helper()
	s := besideNodes(t, life)
	s.Delegate()
	s.Entry("/ns/mesh/sa/server", []string{"k8s:ns:mesh", "k8s:sa:server"})
	s.Entry("/ns/mesh/sa/client", []string{"k8s:ns:mesh", "k8s:sa:client", "k8s:pod-name:client", "k8s:pod-label:app:client"})
	return startWithout(t, "--spire="+s.AdminSocket()), s
}

// startWithout runs the mesh with proxies that do not ask tacitd's CA.
func startWithout(t *testing.T, source string) *e2e.Mesh {
	t.Helper()
	m := e2e.StartWith(t, world.Config{ProxyArgs: []string{"--ca=", source}})
	m.Serve("mesh/server", ":8080", e2e.Echo)
	return m
}

func besideNodes(t *testing.T, life time.Duration) *servers.SPIRE {
	t.Helper()
	// SPIRE runs beside the nodes, in the world's own network namespace.
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	return servers.StartSPIRE(t, servers.SPIREConfig{TrustDomain: "cluster.local", Life: life, UID: world.ProxyUID})
}

// presented is the certificate that a pod's proxy shows to whoever connects.
func presented(t *testing.T, m *e2e.Mesh) *x509.Certificate {
	t.Helper()
	tcp, err := m.Pod("outside/plain").Dial(m.Context(), serverTunnels)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcp.Close() }()
	c := tls.Client(tcp, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
	if err := c.HandshakeContext(m.Context()); err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState().PeerCertificates[0]
}

// certificates are what "tacit certs" shows of a node, by identity.
func certificates(t *testing.T, m *e2e.Mesh, node string) map[string][]admin.Certificate {
	t.Helper()
	var answer struct{ Certificates []admin.Certificate }
	if err := m.Admin(node, "/certificates", &answer); err != nil {
		t.Fatal(err)
	}
	all := map[string][]admin.Certificate{}
	for _, c := range answer.Certificates {
		_, account, _ := strings.Cut(c.Identity, "/sa/")
		all[account] = append(all[account], c)
	}
	return all
}

func TestSPIRE(t *testing.T) {
	m, s := startSPIRE(t, time.Hour)
	if _, err := m.Call("mesh/client", server); err != nil {
		t.Fatal(err)
	}
	shown := presented(t, m)
	if id := fmt.Sprint(shown.URIs); id != "[spiffe://cluster.local/ns/mesh/sa/server]" || !strings.Contains(shown.Subject.String(), "SPIRE") {
		t.Errorf("the server shows %s of %s", id, shown.Subject)
	}

	// The twin has the same identity as the client, but no entry.
	if seen, err := m.Call("mesh/twin", server); err == nil {
		t.Fatalf("a pod without an entry has called as %s", seen)
	}
	endedSaying(m, "mesh/twin", "no entry is registered that fits", "k8s:pod-name:twin", "spiffe://cluster.local/ns/mesh/sa/client")
	for _, c := range certificates(t, m, "a")["client"] {
		twin := strings.Contains(c.Selectors, "pod-name:twin")
		if twin != c.NotAfter.IsZero() || twin != (c.Error != "") {
			t.Errorf("tacit certs says of %s: %+v", c.Selectors, c)
		}
	}

	// A connection that is waiting when the kubelet says at last what the entry
	// asks for is served.
	s.Entry("/ns/mesh/sa/client", []string{"k8s:pod-name:twin", "k8s:container-name:app", "k8s:container-image:" + twinImage, "k8s:pod-owner:ReplicaSet:twin-5d"})
	done := make(chan error, 1)
	go func() {
		_, err := m.Call("mesh/twin", server)
		done <- err
	}()
	m.Eventually("the twin's connection waits", func() error {
		if len(m.Connections("a", "live", "mesh/twin", "")) == 0 {
			return errors.New("it is not there")
		}
		return nil
	})
	m.MustApply(runningTwin)
	if err := <-done; err != nil {
		t.Errorf("the containers are known, and the connection that waited for that fails: %v", err)
	}

	t.Run("federation", func(t *testing.T) { federation(t, m, s) })
}

// endedSaying waits until a pod's connections have ended for a reason of these
// words.
func endedSaying(m *e2e.Mesh, pod string, words ...string) {
	m.Eventually("the client's node knows the ended connection and why", func() error {
		reason := ""
		for _, c := range m.Connections("a", "ended", pod, "") {
			reason += c.Reason
		}
		for _, want := range words {
			if !strings.Contains(reason, want) {
				return fmt.Errorf("the reason is %q, want a word of %s", reason, want)
			}
		}
		return nil
	})
}

// A proxy has the identities that its agent's Workload API gives to it, and no
// pod any other.
func TestWorkloadAPI(t *testing.T) {
	s := besideNodes(t, time.Hour)
	proxy := []string{fmt.Sprintf("unix:uid:%d", world.ProxyUID)}
	s.Entry("/ns/mesh/sa/server", proxy)
	s.Entry("/ns/mesh/sa/client", proxy)
	m := startWithout(t, "--workload-api="+s.WorkloadSocket())
	if seen, err := m.Call("mesh/client", server); err != nil {
		t.Fatal(err)
	} else if seen != "198.18.1.10" {
		t.Errorf("the server sees %s", seen)
	}
	if shown := presented(t, m); !strings.Contains(shown.Subject.String(), "SPIRE") {
		t.Errorf("the server shows a certificate of %s", shown.Subject)
	}
	if _, err := m.Call("mesh/near", server); err == nil {
		t.Error("a pod has called whose identity is not given")
	}
	endedSaying(m, "mesh/near", "spiffe://cluster.local/ns/mesh/sa/near", "is there an entry that fits", s.WorkloadSocket())
}

const (
	twinImage   = "docker.io/library/app@sha256:2c9f00a17c6567b14a564f081838072a38a8b0a6bb68c6876d816e90c94b6f3e"
	runningTwin = `
apiVersion: v1
kind: Pod
metadata:
  name: twin
  namespace: mesh
  labels: {app: client}
  annotations: {tacit.mesh/redirection: enabled}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: twin-5d, uid: 8a4e5bd5-54de-4d0e-9a59-1d1b0a4a7a6c}]
spec:
  nodeName: a
  serviceAccountName: client
  containers: [{name: app, image: "app:1", ports: [{name: web, containerPort: 8080}]}]
status:
  podIPs: [{ip: "198.18.1.11"}, {ip: "fd00:7ac1:1::11"}]
  containerStatuses: [{name: app, image: "docker.io/library/app:1", imageID: ` + twinImage + `, containerID: "containerd://4d1f"}]
`
)

// takeAway kills SPIRE's agent, and waits until the server's proxy has noticed.
func takeAway(t *testing.T, m *e2e.Mesh, s *servers.SPIRE) {
	t.Helper()
	mark := m.Node("b").Proxy().Mark()
	s.KillAgent()
	if _, err := m.Node("b").Proxy().WaitLog(m.Context(), mark, func(line string) bool {
		return strings.Contains(line, "the one there is serves until it ends") && strings.Contains(line, "is it running")
	}); err != nil {
		t.Error(err)
	}
}

// While SPIRE's agent is away everything goes on, as long as certificates are
// valid; once it is back they are renewed, and nobody has noticed.
func TestSPIREAway(t *testing.T) {
	m, s := startSPIRE(t, 20*time.Second)
	if _, err := m.Call("mesh/client", server); err != nil {
		t.Fatal(err)
	}
	first := presented(t, m)
	takeAway(t, m, s)
	if m.Metric("b", "tacit_certificate_failures_total", "identity=spiffe://cluster.local/ns/mesh/sa/server") == 0 {
		t.Error("the metrics know of no failure")
	}
	m.Eventually("two thirds of the life have passed", func() error {
		if _, err := m.Call("mesh/client", server); err != nil {
			t.Fatalf("a connection while SPIRE is away: %v", err)
		}
		if left := time.Until(first.NotAfter); left > 7*time.Second {
			return fmt.Errorf("%v left", left)
		}
		return nil
	})
	s.StartAgent()
	m.Eventually("a new certificate", func() error {
		if now := presented(t, m); now.SerialNumber.Cmp(first.SerialNumber) == 0 {
			return fmt.Errorf("still the first one, which ends in %v", time.Until(first.NotAfter))
		}
		return nil
	})
	m.Eventually("no error any more", func() error {
		for _, c := range certificates(t, m, "b")["server"] {
			if c.Error != "" {
				return errors.New(c.Error)
			}
		}
		return nil
	})
	if _, err := m.Call("mesh/client", server); err != nil {
		t.Error(err)
	}
}

// Connections to a pod whose SPIRE is down all succeed, and what they take is
// what they took before and take after, beside direct ones. Calls share the tunnels
// that there are, so handshakes, which need the certificate itself, are measured
// too.
func TestLatencyWithoutSPIRE(t *testing.T) {
	if os.Getenv("TACIT_LONG") == "" {
		t.Skip("a figure, for a machine with nothing else to do: set TACIT_LONG=1")
	}
	m, s := startSPIRE(t, time.Hour)
	m.Serve("outside/target", ":8080", e2e.Echo)
	before := measure(t, m)
	takeAway(t, m, s)
	away := measure(t, m)
	for _, c := range certificates(t, m, "b")["server"] {
		if c.Error == "" {
			t.Error("SPIRE was back before the end")
		}
	}
	s.StartAgent()
	m.Eventually("SPIRE is back", func() error {
		for _, c := range certificates(t, m, "b")["server"] {
			if c.Error != "" {
				return errors.New(c.Error)
			}
		}
		return nil
	})
	after := measure(t, m)
	t.Logf("with SPIRE %v, without %v, with it again %v", before, away, after)
	if most := 1.1 * max(before.calls(), after.calls()); away.calls() > most {
		t.Errorf("while SPIRE is down calls take %.2f times as long as direct ones, want at most %.2f", away.calls(), most)
	}
	if most := 1.1 * max(before.handshakes(), after.handshakes()); away.handshakes() > most {
		t.Errorf("while SPIRE is down handshakes take %.2f times as long as direct calls, want at most %.2f", away.handshakes(), most)
	}
}

// latency is how long the one in the middle takes of 1,000 direct calls, calls in
// the mesh, and handshakes with the server.
type latency struct{ direct, call, handshake time.Duration }

func (l latency) calls() float64      { return float64(l.call) / float64(l.direct) }
func (l latency) handshakes() float64 { return float64(l.handshake) / float64(l.direct) }

// measure has the three take turns, as what the machine does meanwhile, and where
// it runs what, changes all of them.
func measure(t *testing.T, m *e2e.Mesh) latency {
	t.Helper()
	took := make([][]time.Duration, 3)
	for range 1000 {
		for i, once := range []func() error{
			func() error { _, err := m.Call("outside/plain", "198.18.2.30:8080"); return err },
			func() error { _, err := m.Call("mesh/client", server); return err },
			func() error { presented(t, m); return nil },
		} {
			began := time.Now()
			if err := once(); err != nil {
				t.Fatalf("after %d that went well: %v", len(took[i]), err)
			}
			took[i] = append(took[i], time.Since(began))
		}
	}
	for _, all := range took {
		slices.Sort(all)
	}
	return latency{took[0][500], took[1][500], took[2][500]}
}
