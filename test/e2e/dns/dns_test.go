package dns

import (
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/tacit-mesh/tacit/internal/manifests"
	"github.com/tacit-mesh/tacit/redirect/zds/protocol"
	"github.com/tacit-mesh/tacit/redirect/zds/zdstest"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

func TestOwnCapture(t *testing.T) {
	m := build(t, world.Config{AgentArgs: []string{"--dns-capture", "--dns-server=" + clusterDNS, "--dns-server=" + clusterDNS6}})
	m.must(m.Start(m.Context()))
	m.names()
	m.forwards()
	t.Run("a server of the pod's own choice", func(t *testing.T) {
		before := m.Metric("a", "istio_dns_requests_total")
		for _, how := range []string{"+notcp", "+tcp"} {
			if got := m.dig("mesh/client", "+short", how, "@"+otherDNS, "who.example.org", "TXT"); got != "\"other\"\n" {
				t.Errorf("%s: %q", how, got)
			}
		}
		if after := m.Metric("a", "istio_dns_requests_total"); after != before {
			t.Errorf("%v queries to it were captured", after-before)
		}
	})
	t.Run("rolls", m.rolls)
	t.Run("hostile", m.hostile)
	t.Run("away", m.away)
	t.Run("let go", m.letGo)
}

// Under Istio's CNI agent, whose rules redirect every query.
func TestUnderIstio(t *testing.T) {
	m := build(t, world.Config{ZDS: true})
	m.must(m.StartControl(m.Context()))
	for _, node := range m.Nodes() {
		istio, err := zdstest.Listen(node.ZDSSocket())
		m.must(err)
		defer func() { _ = istio.Close() }()
		m.must(node.StartAgent(m.Context()))
		conn, err := istio.Accept(m.Context())
		m.must(err)
		defer func() { _ = conn.Close() }()
		for _, pod := range m.Pods() {
			namespace, name, _ := strings.Cut(pod.Key, "/")
			if pod.Node != node || namespace != "mesh" {
				continue
			}
			m.must(zdstest.Capture(pod))
			m.must(zdstest.CaptureDNS(pod))
			m.must(conn.Add(manifests.PodUID("", namespace, name), &protocol.WorkloadInfo{
				Namespace: namespace, Name: name, ServiceAccount: pod.ServiceAccount(),
			}, pod.NetnsPath()))
		}
		m.must(conn.SnapshotSent())
		m.must(node.StartProxy(m.Context()))
	}
	m.names()
	m.forwards()
	// UDP does not tell where it was going.
	if got := m.dig("mesh/client", "+short", "@"+otherDNS, "who.example.org", "TXT"); got != "\"cluster\"\n" {
		t.Errorf("another server by UDP: %q", got)
	}
	if got := m.dig("mesh/client", "+short", "+tcp", "@"+otherDNS, "who.example.org", "TXT"); got != "\"other\"\n" {
		t.Errorf("another server by TCP: %q", got)
	}
	t.Run("rolls", m.rolls)
}

// names are those of the mesh, which the cluster's server knows nothing of.
func (m *mesh) names() {
	m.t.Run("names", func(t *testing.T) {
		m.Serve("mesh/server", ":8080", e2e.Echo)
		for _, name := range []string{"shop", "shop.mesh", "shop.mesh.svc", "shop.mesh.svc.cluster.local", "shop.mesh.svc.cluster.local."} {
			if got := m.getent("mesh/client", name); got != "198.18.100.1" {
				t.Errorf("%s is at %q", name, got)
			}
		}
		if saw, err := m.Call("mesh/client", m.getent("mesh/client", "shop")+":80"); err != nil || saw != "198.18.1.10" {
			t.Errorf("the server saw %q: %v", saw, err)
		}
		for _, server := range []string{"@" + clusterDNS, "@" + clusterDNS6} {
			for _, how := range []string{"+notcp", "+tcp"} {
				got := strings.Fields(m.dig("mesh/client", "+short", how, server, "pair.mesh.svc.cluster.local", "AAAA"))
				slices.Sort(got)
				if want := []string{"fd00:7ac1:2::11", "fd00:7ac1:2::12"}; !slices.Equal(got, want) {
					t.Errorf("%s %s: the headless service is at %v, want %v", server, how, got, want)
				}
			}
		}
		if got := m.dig("mesh/client", "shop.mesh.svc.cluster.local", "AAAA"); !strings.Contains(got, "status: NOERROR") || !strings.Contains(got, "flags: qr aa rd ra; QUERY: 1, ANSWER: 0, AUTHORITY: 1") {
			t.Errorf("the other family:\n%s", got)
		}
		if got := m.dig("mesh/client", "shop.mesh.mesh.svc.cluster.local", "+short"); got != "shop.mesh.\n198.18.100.1\n" {
			t.Errorf("with a search domain too many: %q", got)
		}
	})
}

// forwards are queries that are answered as if nobody were in between.
func (m *mesh) forwards() {
	m.t.Run("forwards", func(t *testing.T) {
		for _, query := range []string{
			"www.example.org A", "www.example.org AAAA", "alias.example.org A", "_http._tcp.example.org SRV", "1.2.0.192.in-addr.arpa PTR",
			"who.example.org TXT", "absent.example.org A", "version.bind TXT CH", "www.example.org A +dnssec +cdflag +adflag",
			"www.example.org A +norecurse", "www.example.org MX +bufsize=900", "www.example.org A +noedns", "long.example.org TXT", "who.example.org TXT +tcp +keepopen",
		} {
			args := append(strings.Fields(query), "@"+clusterDNS)
			if got, want := m.dig("mesh/client", args...), m.dig("outside/target", args...); sorted(got) != sorted(want) {
				t.Errorf("%s: the captured pod sees\n%s\nthe other one\n%s", query, got, want)
			}
		}
		if got := m.dig("mesh/client", "long.example.org", "TXT"); !strings.Contains(got, "retrying in TCP mode") || strings.Count(got, "xxx\"") != 8 {
			t.Errorf("an answer too long for UDP:\n%s", got)
		}
		for _, protocol := range []string{"udp", "tcp"} {
			if m.Metric("a", "istio_dns_upstream_requests_total", "request_protocol="+protocol) == 0 {
				t.Errorf("no forwarded query by %s was counted", protocol)
			}
		}
		if n := m.Metric("a", "istio_dns_upstream_failures_total"); n != 0 {
			t.Errorf("%v queries failed", n)
		}
	})
}

// sorted are the lines of a text in order: a server may turn its records round.
func sorted(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// rolls replaces the proxy, with and without an overlap, under queries of which
// none is repeated: each gets its answer.
func (m *mesh) rolls(t *testing.T) {
	more, stop := m.stream(t)
	defer stop()
	more()
	old, err := m.Node("a").RollProxy(m.Context())
	m.must(err)
	m.must(old.Wait(m.Context()))
	more()
	m.must(m.Node("a").Proxy().Stop(m.Context())) // and nobody is there
	m.must(m.Node("a").StartProxy(m.Context()))
	more()
}

// stream asks one question after the other from a pod, by two sockets, until it
// is stopped; more waits until each has been answered twice more.
func (m *mesh) stream(t *testing.T) (more, stop func()) {
	t.Helper()
	ended := make(chan struct{})
	var running sync.WaitGroup
	var answered [2]atomic.Int64
	for i, name := range []string{"shop.mesh.svc.cluster.local.", "www.example.org."} {
		var conn net.Conn
		m.must(m.Pod("mesh/client").Do(func() (err error) {
			conn, err = net.Dial("udp", clusterDNS+":53")
			return err
		}))
		running.Go(func() {
			client := mdns.Client{Timeout: e2e.Patience}
			defer func() { _ = conn.Close() }()
			for {
				select {
				case <-ended:
					return
				default:
				}
				got, _, err := client.ExchangeWithConn(new(mdns.Msg).SetQuestion(name, mdns.TypeA), &mdns.Conn{Conn: conn})
				if err != nil || got.Rcode != mdns.RcodeSuccess || len(got.Answer) != 1 {
					t.Errorf("%s, after %d answers: %v, %v", name, answered[i].Load(), got, err)
					return
				}
				answered[i].Add(1)
			}
		})
	}
	more = func() {
		t.Helper()
		before := [2]int64{answered[0].Load(), answered[1].Load()}
		m.Eventually("each has two more answers", func() error {
			if answered[0].Load() < before[0]+2 || answered[1].Load() < before[1]+2 {
				return syscall.EAGAIN
			}
			return nil
		})
	}
	return more, func() { close(ended); running.Wait() }
}

// hostile is a pod that sends anything but queries, and others that want to use
// its proxy.
func (m *mesh) hostile(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		var conn net.Conn
		m.must(m.Pod("mesh/client").Do(func() (err error) {
			conn, err = net.Dial(network, clusterDNS+":53")
			return err
		}))
		packet := make([]byte, 512)
		for i := range 2000 {
			for j := range packet {
				packet[j] = byte(i * (j + 7) >> (j % 5))
			}
			if _, err := conn.Write(packet[:i%len(packet)]); err != nil {
				break // it was shown the door
			}
		}
		_ = conn.Close()
	}
	if got := m.getent("mesh/client", "shop"); got != "198.18.100.1" {
		t.Errorf("afterwards shop is at %q", got)
	}
	for _, from := range []string{"mesh/near", "outside/plain"} {
		out, err := m.Pod(from).Command(t.Context(), "dig", "+tries=1", "+time=1", "@198.18.1.10", "-p", "15053", "shop.mesh.svc.cluster.local").CombinedOutput()
		if err == nil {
			t.Errorf("%s may ask another pod's proxy:\n%s", from, out)
		}
		if c, err := m.Dial(from, "198.18.1.10:15053"); err == nil {
			if n, err := c.Read(make([]byte, 1)); n > 0 {
				t.Errorf("%s was answered by TCP: %v", from, err)
			}
		}
	}
}

// away is the time without the cluster's server.
func (m *mesh) away(t *testing.T) {
	goOn := m.stop(m.server)
	if got := m.dig("mesh/client", "www.example.org"); !strings.Contains(got, "status: SERVFAIL") {
		t.Errorf("without an answer:\n%s", got)
	}
	if got := m.getent("mesh/client", "shop"); got != "198.18.100.1" {
		t.Errorf("shop is at %q", got)
	}
	goOn()
	m.Eventually("the server answers again", func() error {
		if got := m.dig("mesh/client", "www.example.org"); !strings.Contains(got, "192.0.2.1") {
			return syscall.EAGAIN
		}
		return nil
	})
	if m.Metric("a", "istio_dns_upstream_failures_total") == 0 {
		t.Error("no failure was counted")
	}
	if _, err := m.Node("a").Proxy().WaitLog(m.Context(), 0, func(line string) bool { return strings.Contains(line, "DNS query not answered") }); err != nil {
		t.Error(err)
	}
}

// letGo is a pod that leaves the mesh while it asks, by one socket: the queries
// go where they are sent from then on.
func (m *mesh) letGo(t *testing.T) {
	var conn net.Conn
	m.must(m.Pod("mesh/near").Do(func() (err error) {
		conn, err = net.Dial("udp", clusterDNS+":53")
		return err
	}))
	defer func() { _ = conn.Close() }()
	ask := func() (*mdns.Msg, error) {
		got, _, err := (&mdns.Client{Timeout: time.Second}).ExchangeWithConn(new(mdns.Msg).SetQuestion("shop.mesh.svc.cluster.local.", mdns.TypeA), &mdns.Conn{Conn: conn})
		return got, err
	}
	if got, err := ask(); err != nil || len(got.Answer) != 1 {
		t.Fatalf("at first: %v, %v", got, err)
	}
	m.MustApply(`
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: mesh, labels: {app: near, tacit.mesh/dataplane: disabled}}
spec: {nodeName: a, serviceAccountName: near, containers: [{name: app, image: none}]}
status: {podIPs: [{ip: "198.18.1.20"}, {ip: "fd00:7ac1:1::20"}]}
`)
	m.Eventually("the cluster's server is asked", func() error {
		if got, err := ask(); err != nil || got.Rcode != mdns.RcodeRefused && got.Rcode != mdns.RcodeNameError {
			return syscall.EAGAIN
		}
		return nil
	})
}
