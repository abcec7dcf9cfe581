// Package dns tests pods' DNS queries, with real resolvers in the pods and a
// real server behind the proxy.
package dns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

func TestMain(m *testing.M) { e2e.Main(m) }

// clusterDNS is the cluster's server, in a pod outside of the mesh; otherDNS is
// one of another owner.
const (
	clusterDNS, clusterDNS6 = "198.18.1.30", "fd00:7ac1:1::30"
	otherDNS                = "198.18.2.30"
)

const services = `
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: mesh}
spec:
  clusterIPs: ["198.18.100.1"]
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: pair, namespace: mesh}
spec:
  clusterIP: None
  selector: {app: pair}
  ports: [{port: 8080}]
`

// mesh is a world with both servers.
type mesh struct {
	*e2e.Mesh
	t      *testing.T
	server *world.Program
}

// records of both servers. The text is longer than any UDP answer.
func records(marker string) []string {
	args := []string{
		"--txt-record=who.example.org," + marker,
		"--host-record=www.example.org,192.0.2.1,2001:db8::1",
		"--srv-host=_http._tcp.example.org,www.example.org,80,1,2",
		"--ptr-record=1.2.0.192.in-addr.arpa,www.example.org",
		"--cname=alias.example.org,www.example.org",
	}
	for i := range 8 {
		args = append(args, fmt.Sprintf("--txt-record=long.example.org,%d%s", i, strings.Repeat("x", 250)))
	}
	return args
}

// serveDNS starts dnsmasq in a pod.
func (m *mesh) serveDNS(pod, marker string) *world.Program {
	m.t.Helper()
	args := append([]string{
		"--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file=", "--user=root",
		"--log-facility=-", "--auth-ttl=20", "--local-ttl=20",
	}, records(marker)...)
	p, err := world.Launch("dnsmasq-"+marker, filepath.Join(m.Dir(), "dnsmasq-"+marker+".log"), m.Pod(pod).Command(context.Background(), "dnsmasq", args...))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = p.Kill() })
	m.Eventually("dnsmasq answers", func() error {
		out, err := m.Pod(pod).Command(m.t.Context(), "dig", "+short", "+tries=1", "+time=1", "@127.0.0.1", "who.example.org", "TXT").CombinedOutput()
		if err != nil || !strings.Contains(string(out), marker) {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	})
	return p
}

// build makes the world, starts the servers, and writes what resolvers read.
func build(t *testing.T, config world.Config) *mesh {
	t.Helper()
	upstream := filepath.Join(t.TempDir(), "resolv.conf")
	// The proxy, which is another user, reads it.
	if err := errors.Join(os.WriteFile(upstream, []byte("nameserver "+clusterDNS+"\n"), 0o644), os.Chmod(filepath.Dir(upstream), 0o755), os.Chmod(filepath.Dir(filepath.Dir(upstream)), 0o755)); err != nil {
		t.Fatal(err)
	}
	config.ProxyArgs = append(config.ProxyArgs, "--dns-upstream", upstream)
	m := &mesh{Mesh: e2e.Build(t, config, services), t: t}
	for _, pod := range m.Pods() {
		namespace, name, _ := strings.Cut(pod.Key, "/")
		text := "nameserver " + clusterDNS + "\nsearch " + namespace + ".svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
		if err := os.WriteFile(filepath.Join(m.Dir(), "pods", namespace+"_"+name, "resolv.conf"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m.server = m.serveDNS("outside/plain", "cluster")
	m.serveDNS("outside/target", "other")
	return m
}

// dig asks from a pod and returns what is said, without what is never the same.
func (m *mesh) dig(pod string, args ...string) string {
	m.t.Helper()
	out, err := m.Pod(pod).Command(m.t.Context(), "dig", append([]string{"+nostats", "+nocookie", "+tries=1", "+time=10"}, args...)...).CombinedOutput()
	var text strings.Builder
	for line := range strings.Lines(string(out)) {
		if i := strings.Index(line, ", id: "); i >= 0 {
			line = line[:i] + "\n"
		}
		if !strings.HasPrefix(line, "; <<>>") {
			text.WriteString(line)
		}
	}
	if err != nil {
		m.t.Errorf("dig %v in %s: %v\n%s", args, pod, err, out)
	}
	return text.String()
}

// getent asks as programs do, by the C library.
func (m *mesh) getent(pod, name string) string {
	m.t.Helper()
	out, err := m.Pod(pod).Command(m.t.Context(), "getent", "-s", "dns", "ahostsv4", name).CombinedOutput()
	if err != nil {
		m.t.Errorf("getent %s in %s: %v\n%s", name, pod, err, out)
	}
	address, _, _ := strings.Cut(string(out), " ")
	return address
}

func (m *mesh) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// stop stops a program and lets it go on at the end.
func (m *mesh) stop(p *world.Program) (goOn func()) {
	m.t.Helper()
	m.must(p.Signal(unix.SIGSTOP))
	return func() { m.must(p.Signal(unix.SIGCONT)) }
}
