package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what has to happen; nothing waits that long.
const patience = 30 * time.Second

func service(namespace, hostname string, addresses ...string) *model.Service {
	s := &model.Service{Name: hostname, Namespace: namespace, Hostname: hostname}
	for _, a := range addresses {
		prefix, err := netip.ParsePrefix(a)
		if err != nil {
			addr := netip.MustParseAddr(a)
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		s.Addresses = append(s.Addresses, model.NetworkAddress{Network: "net1", Prefix: prefix})
	}
	return s
}

// endpoint is a workload of a service; "!" in front of its UID is an unhealthy
// one, "-" one that ends.
func endpoint(uid, service string, addresses ...string) *model.Workload {
	w := &model.Workload{UID: uid, Network: "net1", Services: map[string][]model.Port{service: nil}, Unhealthy: uid[0] == '!', Terminating: uid[0] == '-'}
	for _, a := range addresses {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
	}
	return w
}

// mesh has a service for each rule.
func mesh() *model.Snapshot {
	far := service("mine", "far.mine.svc.cluster.local", "10.9.0.1")
	far.Addresses[0].Network = "net2"
	private := service("other", "private.other.svc.cluster.local", "10.0.0.4")
	private.Private = true
	canonical := service("z", "twice.example.com", "10.0.1.2")
	canonical.Canonical = true
	all := service("mine", "all.mine.svc.cluster.local")
	all.Unhealthy = true
	wide := service("mine", "wide.example.com", "10.4.0.0/16", "10.5.0.1")
	elsewhere := endpoint("elsewhere", "mine/headless.mine.svc.cluster.local", "10.3.0.9")
	elsewhere.Network = "net2"
	u := model.Update{
		Services: []*model.Service{
			service("mine", "web.mine.svc.cluster.local", "10.0.0.1", "fd00::1"),
			service("other", "four.other.svc.cluster.local", "10.0.0.2"),
			service("other", "six.other.svc.cluster.local", "fd00::2"),
			far, private, canonical, all, wide,
			service("a", "twice.example.com", "10.0.1.1"),
			service("mine", "both.example.com", "10.0.1.3"), service("a", "both.example.com", "10.0.1.4"),
			service("a", "shop.example.com", "10.0.1.5"),
			service("a", "*.wild.example.com", "10.0.1.6"),
			service("a", "none.example.com"), service("a", "cidr.example.com", "10.2.0.0/16"),
			service("mine", "headless.mine.svc.cluster.local"), service("mine", "empty.mine.svc.cluster.local"),
		},
		Workloads: []*model.Workload{
			endpoint("one", "mine/headless.mine.svc.cluster.local", "10.3.0.1", "10.3.0.101", "fd00:3::1"),
			endpoint("two", "mine/headless.mine.svc.cluster.local", "10.3.0.2"),
			endpoint("!sick", "mine/headless.mine.svc.cluster.local", "10.3.0.3"),
			endpoint("-old", "mine/headless.mine.svc.cluster.local", "10.3.0.4"),
			elsewhere,
			endpoint("!all", "mine/all.mine.svc.cluster.local", "10.3.0.5"),
		},
		AddressesComplete: true,
	}
	return model.NewSnapshot().Apply(u)
}

// upstream is a real server on loopback that answers as it is told.
type upstream struct {
	addr netip.AddrPort

	mu    sync.Mutex
	asked []*mdns.Msg
}

// listenBoth finds a port that is free for UDP and for TCP.
func listenBoth(t testing.TB) (*net.UDPConn, net.Listener) {
	t.Helper()
	for {
		packets, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		listener, err := net.Listen("tcp", packets.LocalAddr().String())
		if err == nil {
			return packets, listener
		}
		_ = packets.Close()
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

// newUpstream answers by UDP and TCP.
func newUpstream(t testing.TB, answer func(mdns.ResponseWriter, *mdns.Msg)) *upstream {
	t.Helper()
	packets, listener := listenBoth(t)
	u := &upstream{addr: netip.MustParseAddrPort(packets.LocalAddr().String())}
	handle := mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		u.mu.Lock()
		u.asked = append(u.asked, q.Copy())
		u.mu.Unlock()
		answer(w, q)
	})
	var running sync.WaitGroup
	t.Cleanup(running.Wait) // after what ends them
	for _, server := range []*mdns.Server{{PacketConn: packets, Handler: handle, UDPSize: mdns.MaxMsgSize}, {Listener: listener, Handler: handle}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		running.Go(func() {
			if err := server.ActivateAndServe(); err != nil {
				t.Errorf("upstream: %v", err)
			}
		})
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return u
}

func (u *upstream) questions() []*mdns.Msg {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked
}

// says answers with records, as zone files have them.
func says(t testing.TB, records ...string) func(mdns.ResponseWriter, *mdns.Msg) {
	return func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		for _, text := range records {
			record, err := mdns.NewRR(text)
			if err != nil {
				t.Errorf("record %q: %v", text, err)
			}
			m.Answer = append(m.Answer, record)
		}
		_ = w.WriteMsg(m)
	}
}

// forwarderTo asks the servers at these addresses, all with one port.
func forwarderTo(t testing.TB, port uint16, addresses ...string) *Forwarder {
	t.Helper()
	file := filepath.Join(t.TempDir(), "resolv.conf")
	var text string
	for _, a := range addresses {
		text += fmt.Sprintf("nameserver %s\n", a)
	}
	if err := os.WriteFile(file, []byte(text+"search example.com\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f := NewForwarder(file)
	f.servers.port = port
	return f
}

// pod is a pod's server on loopback sockets.
type pod struct {
	t      testing.TB
	server *Server
	addr   string
	mu     sync.Mutex
	events []Event
}

func newPod(t testing.TB, s *model.Snapshot, f *Forwarder, edits ...func(*Config)) *pod {
	t.Helper()
	p := &pod{t: t}
	c := Config{
		Zone: NewZone("cluster.local"), Forwarder: f,
		Mesh: func() (*model.Snapshot, Client, bool) { return s, Client{"mine", "net1"}, s != nil },
		Dial: func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
			return nil, fmt.Errorf("dialed %v from the pod", to)
		},
		Observe: p.observe,
	}
	for _, edit := range edits {
		edit(&c)
	}
	p.server = NewServer(c)
	packets, listener := listenBoth(t)
	p.addr = packets.LocalAddr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		var forwards sync.WaitGroup
		_ = p.server.ServeUDP(ctx, packets, &forwards)
		forwards.Wait()
		_ = packets.Close()
	})
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.server.ServeTCP(ctx, conn.(*net.TCPConn), netip.AddrPort{}) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = packets.SetReadDeadline(time.Unix(1, 0))
		_ = listener.Close()
		running.Wait()
	})
	return p
}

func (p *pod) observe(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
}

// ask asks by "udp" or "tcp".
func (p *pod) ask(network string, q *mdns.Msg) *mdns.Msg {
	p.t.Helper()
	client := mdns.Client{Net: network, Timeout: patience, UDPSize: mdns.MaxMsgSize}
	got, _, err := client.Exchange(q, p.addr)
	if err != nil {
		p.t.Fatalf("%s: %v", q.Question[0].String(), err)
	}
	return got
}

func about(name string, kind uint16) *mdns.Msg { return new(mdns.Msg).SetQuestion(name, kind) }
