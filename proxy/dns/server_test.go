package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/tacit-mesh/tacit/xds/model"
)

// crowd is a mesh with one service of so many endpoints.
func crowd(n int) *model.Snapshot {
	u := model.Update{Services: []*model.Service{service("mine", "many.mine.svc.cluster.local")}, AddressesComplete: true}
	addr := netip.MustParseAddr("10.3.0.1")
	for range n {
		u.Workloads = append(u.Workloads, endpoint("w"+addr.String(), "mine/many.mine.svc.cluster.local", addr.String()))
		addr = addr.Next()
	}
	return model.NewSnapshot().Apply(u)
}

// The answer has as much as the client has room for, and says if that is not
// all: then it asks again by TCP.
func TestSizes(t *testing.T) {
	p := newPod(t, crowd(5000), forwarderTo(t, 1, "127.0.0.1"))
	for name, tt := range map[string]struct {
		network   string
		edns      uint16
		most      int
		truncated bool
	}{
		"without EDNS":               {"udp", 0, 512, true},
		"less than the least":        {"udp", 100, 512, true},
		"a usual size":               {"udp", 1232, 1232, true},
		"more than is sent":          {"udp", 65535, maxUDP, true},
		"by TCP":                     {"tcp", 0, mdns.MaxMsgSize, false},
		"by TCP, whatever EDNS says": {"tcp", 512, mdns.MaxMsgSize, false},
	} {
		t.Run(name, func(t *testing.T) {
			q := about("many.", mdns.TypeA)
			if tt.edns > 0 {
				q.SetEdns0(tt.edns, true)
			}
			got := p.ask(tt.network, q)
			got.Compress = true // as it came
			if length := got.Len(); got.Truncated != tt.truncated || length > tt.most || length < tt.most*9/10 {
				t.Errorf("%d bytes with %d addresses, truncated: %v; want most of %d", length, len(got.Answer), got.Truncated, tt.most)
			}
			opt := got.IsEdns0()
			if (opt != nil) != (tt.edns > 0) || opt != nil && (!opt.Do() || opt.UDPSize() != maxUDP) {
				t.Errorf("EDNS of the answer is %v", opt)
			}
		})
	}
	if got := p.ask("tcp", about("many.", mdns.TypeA)); len(got.Answer) != maxAddresses {
		t.Errorf("%d addresses by TCP, want %d", len(got.Answer), maxAddresses)
	}
}

// What is forwarded arrives as it was sent, and comes back as it was answered,
// but for the id.
func TestForwardedAsItIs(t *testing.T) {
	signed := mustRecord(t, "www.example.org. 5 IN RRSIG A 8 3 5 20300101000000 20200101000000 1 example.org. c2lnbmF0dXJl")
	up := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		m.AuthenticatedData, m.CheckingDisabled = true, q.CheckingDisabled
		m.Answer = []mdns.RR{mustRecord(t, "_http._tcp.www.example.org. 5 IN SRV 1 2 80 a.example.org."), signed}
		m.Extra = q.Extra
		_ = w.WriteMsg(m)
	})
	p := newPod(t, mesh(), forwarderTo(t, up.addr.Port(), "127.0.0.1"))
	for _, network := range []string{"udp", "tcp"} {
		q := about("_http._tcp.WWW.example.org.", mdns.TypeSRV)
		q.CheckingDisabled, q.AuthenticatedData = true, true
		q.SetEdns0(1400, true)
		q.IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
		before := len(up.questions())
		got := p.ask(network, q)
		asked := up.questions()[before]
		if asked.Id == q.Id {
			t.Errorf("by %s: forwarded with the client's id", network)
		}
		asked.Id = q.Id
		if !bytes.Equal(packed(t, asked), packed(t, q)) {
			t.Errorf("by %s: forwarded\n%v\nwas\n%v", network, asked, q)
		}
		if !got.AuthenticatedData || got.Authoritative || len(got.Answer) != 2 || got.Answer[1].String() != signed.String() || got.IsEdns0().Option[0].String() != "0123456789abcdef" {
			t.Errorf("by %s: answered\n%v", network, got)
		}
	}
}

func mustRecord(t testing.TB, text string) mdns.RR {
	t.Helper()
	r, err := mdns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func packed(t *testing.T, m *mdns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// By TCP the server that the pod has chosen is asked, from inside the pod, and
// by one connection as long as it lasts.
func TestTCPGoesWhereThePodHasSentIt(t *testing.T) {
	up := newUpstream(t, says(t, "www.example.org. 5 IN A 192.0.2.1"))
	var dialed []netip.AddrPort
	p := newPod(t, mesh(), forwarderTo(t, 1, "127.0.0.1"), func(c *Config) {
		c.Dial = func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
			dialed = append(dialed, to)
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", up.addr.String())
			if err != nil {
				return nil, err
			}
			return conn.(*net.TCPConn), nil
		}
	})
	original := netip.MustParseAddrPort("192.0.2.53:53")
	client := serveOne(t, p, original)
	for _, name := range []string{"www.example.org.", "web.", "www.example.org."} {
		if err := client.WriteMsg(about(name, mdns.TypeA)); err != nil {
			t.Fatal(err)
		}
		if got, err := client.ReadMsg(); err != nil || len(got.Answer) != 1 {
			t.Fatalf("%s: %v, %v", name, got, err)
		}
	}
	if len(dialed) != 1 || dialed[0] != original || len(up.questions()) != 2 {
		t.Errorf("dialed %v for %d questions, want %v once for 2", dialed, len(up.questions()), original)
	}
}

// serveOne is a connection that was going to another server.
func serveOne(t *testing.T, p *pod, original netip.AddrPort) *mdns.Conn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.server.ServeTCP(context.Background(), accepted.(*net.TCPConn), original)
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &mdns.Conn{Conn: conn}
}

// A zone is transferred in any number of answers.
func TestZoneTransfer(t *testing.T) {
	soa := "example.org. 5 IN SOA ns.example.org. . 1 5 5 5 5"
	up := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		for _, text := range []string{soa, "a.example.org. 5 IN A 192.0.2.1", "b.example.org. 5 IN A 192.0.2.2", soa} {
			m := new(mdns.Msg).SetReply(q)
			m.Answer = []mdns.RR{mustRecord(t, text)}
			_ = w.WriteMsg(m)
		}
	})
	p := newPod(t, mesh(), forwarderTo(t, up.addr.Port(), "127.0.0.1"))
	envelopes, err := (&mdns.Transfer{DialTimeout: patience, ReadTimeout: patience}).In(new(mdns.Msg).SetAxfr("example.org."), p.addr)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for e := range envelopes {
		if e.Error != nil {
			t.Error(e.Error)
		}
		n += len(e.RR)
	}
	if n != 4 {
		t.Errorf("%d records, want 4", n)
	}
}

// The next server is asked when one is not there or says nothing of the name,
// and when there is none left the pod is told at once.
func TestOtherServers(t *testing.T) {
	up := newUpstream(t, says(t, "www.example.org. 5 IN A 192.0.2.1"))
	refuses, err := net.ListenPacket("udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), up.addr.Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	server := &mdns.Server{PacketConn: refuses, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		_ = w.WriteMsg(new(mdns.Msg).SetRcode(q, mdns.RcodeRefused))
	})}
	var running sync.WaitGroup
	running.Go(func() { _ = server.ActivateAndServe() })
	defer running.Wait()
	defer func() { _ = refuses.Close() }()
	for name, tt := range map[string]struct {
		servers []string
		code    int
		answers int
	}{
		"not there, then there":    {[]string{"127.0.0.3", "127.0.0.1"}, mdns.RcodeSuccess, 1},
		"refuses, then there":      {[]string{"127.0.0.2", "127.0.0.1"}, mdns.RcodeSuccess, 1},
		"refuses, then not there":  {[]string{"127.0.0.2", "127.0.0.3"}, mdns.RcodeRefused, 0},
		"there is none":            {[]string{"127.0.0.3"}, mdns.RcodeServerFailure, 0},
		"nobody knows of a server": {nil, mdns.RcodeServerFailure, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t, mesh(), forwarderTo(t, up.addr.Port(), tt.servers...))
			if got := p.ask("udp", about("www.example.org.", mdns.TypeA)); got.Rcode != tt.code || len(got.Answer) != tt.answers {
				t.Errorf("got %v", got)
			}
			if e := p.seen()[0]; (e.Err != nil) != (tt.code == mdns.RcodeServerFailure) || !e.Forwarded || e.Kind != "a" {
				t.Errorf("observed %+v", e)
			}
		})
	}
}

func (p *pod) seen() []Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.events
}

// What comes back and is not the answer to the very question is not taken.
func TestForgedAnswers(t *testing.T) {
	forge := func(edit func(*mdns.Msg)) func(mdns.ResponseWriter, *mdns.Msg) {
		return func(w mdns.ResponseWriter, q *mdns.Msg) {
			m := new(mdns.Msg).SetReply(q)
			m.Answer = []mdns.RR{mustRecord(t, "www.example.org. 5 IN A 192.0.2.66")}
			edit(m)
			_ = w.WriteMsg(m)
			says(t, "www.example.org. 5 IN A 192.0.2.1")(w, q)
		}
	}
	for name, edit := range map[string]func(*mdns.Msg){
		"another id":        func(m *mdns.Msg) { m.Id++ },
		"another name":      func(m *mdns.Msg) { m.Question[0].Name = "www.example.com." },
		"a longer name":     func(m *mdns.Msg) { m.Question[0].Name = "a.www.example.org." },
		"another type":      func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeAAAA },
		"another class":     func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS },
		"another operation": func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify },
		"no question":       func(m *mdns.Msg) { m.Question = nil },
		"two questions": func(m *mdns.Msg) {
			m.Question = append([]mdns.Question{{Name: "a.", Qtype: 1, Qclass: 1}}, m.Question...)
		},
		"a query": func(m *mdns.Msg) { m.Response = false },
	} {
		t.Run(name, func(t *testing.T) {
			up := newUpstream(t, forge(edit))
			p := newPod(t, mesh(), forwarderTo(t, up.addr.Port(), "127.0.0.1"))
			for _, network := range []string{"udp", "tcp"} {
				got := p.ask(network, about("www.example.org.", mdns.TypeA))
				if len(got.Answer) != 1 || got.Answer[0].(*mdns.A).A.String() != "192.0.2.1" {
					t.Errorf("by %s: %v", network, got.Answer)
				}
			}
		})
	}
}

// A pod that forwards without an end fails alone, and goes on once its share is
// free.
func TestForwardsAreBounded(t *testing.T) {
	release := make(chan struct{})
	up := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		if strings.HasPrefix(q.Question[0].Name, "slow") {
			<-release
		}
		says(t)(w, q)
	})
	f := forwarderTo(t, up.addr.Port(), "127.0.0.1")
	p, other := newPod(t, mesh(), f), newPod(t, mesh(), f)
	for range maxForwardsPerPod {
		if !take(p.server.slots) {
			t.Fatal("no slot")
		}
	}
	if got := p.ask("udp", about("www.example.org.", mdns.TypeA)); got.Rcode != mdns.RcodeServerFailure {
		t.Errorf("one too many: %v", got)
	}
	if e := p.seen(); !errors.Is(e[0].Err, errBusy) {
		t.Errorf("observed %+v", e)
	}
	if got := p.ask("udp", about("web.", mdns.TypeA)); got.Rcode != mdns.RcodeSuccess || len(got.Answer) != 1 {
		t.Errorf("what the mesh knows: %v", got)
	}
	if got := other.ask("udp", about("www.example.org.", mdns.TypeA)); got.Rcode != mdns.RcodeSuccess {
		t.Errorf("another pod: %v", got)
	}
	<-p.server.slots
	if got := p.ask("udp", about("www.example.org.", mdns.TypeA)); got.Rcode != mdns.RcodeSuccess {
		t.Errorf("with a free slot: %v", got)
	}
	for f.room.Take(new(Server), 1) { // as do many pods, until there is none
	}
	for _, network := range []string{"udp", "tcp"} {
		if got := other.ask(network, about("www.example.org.", mdns.TypeMX)); got.Rcode != mdns.RcodeServerFailure {
			t.Errorf("by %s, one too many for all pods: %v", network, got)
		}
	}
	close(release)
}

// Pods that ask for names without an answer, as many as they like, leave
// something to others.
func TestForwardsAreFair(t *testing.T) {
	up := newUpstream(t, says(t))
	f := forwarderTo(t, up.addr.Port(), "127.0.0.1")
	greedy := make([]Server, 16)
	for taken := -1; taken != f.room.Taken(); {
		taken = f.room.Taken()
		for i := range greedy {
			f.room.Take(&greedy[i], 1)
		}
	}
	p := newPod(t, mesh(), f)
	for _, network := range []string{"udp", "tcp"} {
		if got := p.ask(network, about("www.example.org.", mdns.TypeMX)); got.Rcode != mdns.RcodeSuccess {
			t.Errorf("by %s, with %d forwards taken by 16 others: %v", network, f.room.Taken(), got)
		}
	}
}

// What can be no query gets an answer of its own size at most, or none.
func TestMalformed(t *testing.T) {
	p := newPod(t, mesh(), forwarderTo(t, 1, "127.0.0.1"))
	good := packed(t, about("web.", mdns.TypeA))
	edit := func(fn func(b []byte) []byte) []byte { return fn(bytes.Clone(good)) }
	counted := func(at int, n uint16) []byte {
		return edit(func(b []byte) []byte { binary.BigEndian.PutUint16(b[at:], n); return b })
	}
	for name, tt := range map[string]struct {
		packet []byte
		code   int // -1: no answer
	}{
		"empty":                    {nil, -1},
		"a part of the header":     {good[:11], -1},
		"an answer":                {edit(func(b []byte) []byte { b[2] |= 0x80; return b }), -1},
		"no question":              {counted(4, 0), mdns.RcodeFormatError},
		"two questions":            {counted(4, 2), mdns.RcodeFormatError},
		"a part of the question":   {good[:len(good)-1], mdns.RcodeFormatError},
		"a name that goes on":      {edit(func(b []byte) []byte { b[12] = 63; return b }), mdns.RcodeFormatError},
		"a pointer to itself":      {edit(func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }), mdns.RcodeFormatError},
		"a label of no kind":       {edit(func(b []byte) []byte { b[12] = 0x80; return b }), mdns.RcodeFormatError},
		"answers":                  {counted(6, 1), mdns.RcodeFormatError},
		"records that are missing": {counted(10, 1), mdns.RcodeFormatError},
		"far too many records":     {counted(10, 65535), mdns.RcodeFormatError},
		"two OPT":                  {withRecords(good, 2, opt(0), opt(0)), mdns.RcodeFormatError},
		"a later EDNS":             {withRecords(good, 1, opt(1)), mdns.RcodeBadVers & 0xf},
		"a name too long":          {longName(), mdns.RcodeFormatError},
		"more than is read":        {append(bytes.Clone(good), make([]byte, maxQuery)...), mdns.RcodeFormatError},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("udp", p.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			marker := about("web.", mdns.TypeA)
			for _, packet := range [][]byte{tt.packet, packed(t, marker)} {
				if _, err := conn.Write(packet); err != nil {
					t.Fatal(err)
				}
			}
			buffer := make([]byte, mdns.MaxMsgSize)
			read := func() []byte {
				n, err := conn.Read(buffer)
				if err != nil {
					t.Fatal(err)
				}
				return buffer[:n]
			}
			got := read()
			if tt.code == -1 {
				if binary.BigEndian.Uint16(got) != marker.Id {
					t.Errorf("answered %x", got)
				}
				return
			}
			if len(got) > max(len(tt.packet), 23) || code(got) != tt.code || !bytes.Equal(got[:2], tt.packet[:2]) {
				t.Errorf("answered %x, want the code %d", got, tt.code)
			}
			if got := read(); binary.BigEndian.Uint16(got) != marker.Id {
				t.Errorf("and then %x", got)
			}
		})
	}
}

func opt(version byte) []byte { return []byte{0, 0, 41, 4, 0xd0, 0, version, 0, 0, 0, 0} }

func withRecords(message []byte, n uint16, records ...[]byte) []byte {
	out := bytes.Clone(message)
	binary.BigEndian.PutUint16(out[10:], n)
	return append(out, bytes.Join(records, nil)...)
}

func longName() []byte {
	out := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for range 5 {
		out = append(append(out, 63), bytes.Repeat([]byte("a"), 63)...)
	}
	return append(out, 0, 0, 1, 0, 1)
}

// Connections that say nothing, a part of something, or nothing that makes
// sense end, and others do not notice.
func TestMalformedTCP(t *testing.T) {
	p := newPod(t, mesh(), forwarderTo(t, 1, "127.0.0.1"))
	for name, bytes := range map[string][]byte{
		"a part of the length": {0}, "a part of a message": {0, 12, 1, 2, 3}, "an empty message": {0, 0}, "no query": append([]byte{0, 12}, make([]byte, 2)...),
	} {
		conn, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, err = conn.Write(bytes)
		if err = errors.Join(err, conn.(*net.TCPConn).CloseWrite(), conn.SetDeadline(time.Now().Add(patience))); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		_ = conn.Close()
	}
	if got := p.ask("tcp", about("web.", mdns.TypeA)); len(got.Answer) != 1 {
		t.Errorf("afterwards: %v", got)
	}
}

// A mesh that is not known yet makes nothing worse than without us.
func TestWithoutAMesh(t *testing.T) {
	up := newUpstream(t, says(t, "web.mine.svc.cluster.local. 5 IN A 10.0.0.1"))
	p := newPod(t, nil, forwarderTo(t, up.addr.Port(), "127.0.0.1"))
	if got := p.ask("udp", about("web.mine.svc.cluster.local.", mdns.TypeA)); len(got.Answer) != 1 || len(up.questions()) != 1 {
		t.Errorf("got %v", got)
	}
}

// The socket's end leaves nobody who was heard without an answer, and holds up
// nobody who would read on.
func TestLastAnswers(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	up := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		close(asked)
		<-release
		says(t)(w, q)
	})
	p := newPod(t, mesh(), forwarderTo(t, up.addr.Port(), "127.0.0.1"))
	packets, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var forwards sync.WaitGroup
	served := make(chan error)
	go func() { served <- p.server.ServeUDP(context.Background(), packets, &forwards) }()
	conn, err := mdns.DialTimeout("udp", packets.LocalAddr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := errors.Join(conn.SetDeadline(time.Now().Add(patience)), conn.WriteMsg(about("www.example.org.", mdns.TypeA))); err != nil {
		t.Fatal(err)
	}
	<-asked
	if err := packets.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-served:
		if err == nil {
			t.Error("serves on")
		}
	case <-time.After(patience):
		t.Fatal("waits for an answer to what was read")
	}
	close(release)
	if got, err := conn.ReadMsg(); err != nil || got.Rcode != mdns.RcodeSuccess {
		t.Errorf("%v, %v", got, err)
	}
	forwards.Wait()
	_ = packets.Close()
}
