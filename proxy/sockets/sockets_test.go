package sockets

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func descriptor(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func descriptors(t *testing.T, n int) (fds []int) {
	for range n {
		fds = append(fds, descriptor(t))
	}
	return fds
}

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

func TestPoolGrowsAndShrinks(t *testing.T) {
	b := &budget{limit: 1000}
	p := &pool{family: protocol.Family_FAMILY_IPV4, target: idleSpares}
	if n := p.ask(b); n != idleSpares {
		t.Fatalf("an idle pool asks for %d, want %d", n, idleSpares)
	}
	if n := p.ask(b); n != 0 {
		t.Errorf("asks for %d more while they are on their way", n)
	}
	p.put(b, idleSpares, descriptors(t, idleSpares), nil)

	var waiters []chan dialing
	for range 10 {
		if fd, w := p.take(b); w != nil {
			waiters = append(waiters, w)
		} else {
			unix.Close(fd)
		}
	}
	if len(waiters) != 8 || p.target != maxSpares {
		t.Errorf("%d wait and the target is %d; want 8 and %d", len(waiters), p.target, maxSpares)
	}
	asked := p.ask(b)
	if asked != 8+maxSpares {
		t.Errorf("asks for %d, want one for each waiter and %d spares", asked, maxSpares)
	}
	p.put(b, asked, descriptors(t, asked), nil)
	for _, w := range waiters {
		unix.Close((<-w).fd)
	}
	if len(p.ready) != maxSpares || b.used != maxSpares {
		t.Errorf("%d ready and %d used, want %d", len(p.ready), b.used, maxSpares)
	}
	for range 10 {
		p.trim(b)
	}
	if len(p.ready) != idleSpares || b.used != idleSpares {
		t.Errorf("after a quiet time %d ready and %d used, want %d", len(p.ready), b.used, idleSpares)
	}
	last := slices.Clone(p.ready)
	p.close(b, errors.New("closed"))
	if b.used != 0 || isOpen(last[0]) || isOpen(last[1]) {
		t.Errorf("after the close %d used", b.used)
	}
}

func TestPoolKeepsTheBudget(t *testing.T) {
	b := &budget{limit: 3}
	p, q := &pool{target: idleSpares}, &pool{target: idleSpares}
	if n := p.ask(b) + q.ask(b); n != 3 {
		t.Errorf("two pools ask for %d spares, the budget is 3", n)
	}
	q.waiters = make([]chan dialing, 10)
	if n := q.ask(b); n != 9 {
		t.Errorf("ten waiters with one on its way ask for %d, want 9: who waits is served beyond the budget", n)
	}
	p.forgetAsked(b)
	q.forgetAsked(b)
	if b.used != 0 || p.asked != 0 {
		t.Errorf("%d used after the agent went away", b.used)
	}
}

// A node full of idle pods keeps nine tenths of its descriptors; who dials is
// served all the same.
func TestSparesOfManyPods(t *testing.T) {
	a := NewAgent(AgentConfig{})
	limit := descriptorLimit()
	if a.spares.limit != limit/10 {
		t.Errorf("%d spares are allowed of %d descriptors, want a tenth", a.spares.limit, limit)
	}
	a = NewAgent(AgentConfig{Spares: 102}) // of 1024 descriptors
	asked := func() (n int) {
		for _, w := range a.wants(0) {
			n += int(w.GetCount())
		}
		return n
	}
	var last *pool
	for i := range 300 {
		p := &pod{}
		last = p.pool(protocol.Family_FAMILY_IPV4)
		p.pool(protocol.Family_FAMILY_IPV6)
		a.pods[strconv.Itoa(i)] = p
	}
	if n := asked(); n != 102 {
		t.Errorf("300 idle pods ask for %d spares, want 102", n)
	}
	had := last.asked
	for range had + 1 {
		last.take(&a.spares)
	}
	if n := asked(); n != 1 {
		t.Errorf("one dial too many asks for %d sockets, want 1", n)
	}
}

func TestPoolPassesOnFailure(t *testing.T) {
	b := &budget{limit: 10}
	p := &pool{target: idleSpares}
	_, w1 := p.take(b)
	_, w2 := p.take(b)
	asked := p.ask(b)
	p.put(b, asked, descriptors(t, 1), errors.New("no more"))
	got1, got2 := <-w1, <-w2
	defer unix.Close(got1.fd)
	if got1.err != nil || got2.err == nil || b.used != 0 {
		t.Errorf("one socket for two: %v and %v, %d used", got1, got2, b.used)
	}
}

// recorder is a handler that says what it was told.
type recorder struct {
	told chan string
	hold chan struct{} // each call waits for one, if not nil
	mu   sync.Mutex
	last map[string]Listeners
}

func newRecorder() *recorder {
	return &recorder{told: make(chan string, 100), last: map[string]Listeners{}}
}

func (r *recorder) say(s string) {
	r.told <- s
	if r.hold != nil {
		<-r.hold
	}
}

func (r *recorder) Add(p Pod, l Listeners) {
	r.mu.Lock()
	r.last[p.UID] = l
	r.mu.Unlock()
	r.say("add " + p.UID + " " + p.Name)
}

func (r *recorder) listeners(uid string) Listeners {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last[uid]
}

func (r *recorder) Remove(uid string, gone bool) {
	what := "remove "
	if gone {
		what = "gone "
	}
	r.say(what + uid)
}

func (r *recorder) Synced() { r.say("synced") }

func (r *recorder) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-r.told:
			if got != w {
				t.Fatalf("told %q, want %q", got, w)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("not told %q", w)
		}
	}
}

// A slow handler is told the latest, not everything in between.
func TestFeedOvertakes(t *testing.T) {
	f, r := newFeed(), newRecorder()
	r.hold = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.run(ctx, r) }()
	listeners := func() Listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return Listeners{Outbound: l, Plaintext: newListener(l), HBONE: newListener(l)}
	}
	closed := func(l Listeners) bool {
		l.Outbound.(*net.TCPListener).SetDeadline(time.Now())
		_, err := l.Outbound.Accept()
		return errors.Is(err, net.ErrClosed)
	}
	first, second, third := listeners(), listeners(), listeners()
	f.add(Pod{UID: "a", Name: "1"}, first)
	r.expect(t, "add a 1") // and the handler is busy with it
	f.remove("a", false)
	f.add(Pod{UID: "b", Name: "1"}, second)
	f.remove("b", true)
	f.add(Pod{UID: "a", Name: "2"}, third)
	f.synced(func() {})
	close(r.hold)
	r.expect(t, "add a 2", "synced")
	f.remove("a", true)
	r.expect(t, "gone a")
	cancel()
	<-done
	for i, l := range []Listeners{first, second, third} {
		if !closed(l) {
			t.Errorf("listeners %d are open", i)
		}
	}
}

// fakeAgent answers one proxy as a test wants.
type fakeAgent struct {
	*protocol.Conn
	t *testing.T
}

func startAgent(t *testing.T) (*Agent, *recorder, func() fakeAgent) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, "agent.sock"), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	a, r := NewAgent(AgentConfig{Socket: filepath.Join(dir, "agent.sock"), AgentUID: os.Geteuid(), Spares: 10}), newRecorder()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, r) }()
	t.Cleanup(func() {
		cancel()
		l.Close()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return a, r, func() fakeAgent {
		t.Helper()
		l.SetDeadline(time.Now().Add(10 * time.Second))
		c, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		f := fakeAgent{protocol.NewConn(c), t}
		f.SetReadDeadline(time.Now().Add(10 * time.Second))
		return f
	}
}

func (f fakeAgent) next() (*protocol.FromProxy, []int) {
	f.t.Helper()
	m, fds, err := f.ReceiveFromProxy()
	if err != nil {
		f.t.Fatal(err)
	}
	return m, fds
}

func (f fakeAgent) send(m *protocol.FromAgent, fds ...int) {
	f.t.Helper()
	if err := f.Send(m, fds...); err != nil {
		f.t.Fatal(err)
	}
}

// greet returns what the proxy offered.
func (f fakeAgent) greet() (offers []string) {
	f.t.Helper()
	if m, _ := f.next(); m.GetHello().GetVersion() != protocol.Version {
		f.t.Fatalf("greeting %v", m)
	}
	f.send(&protocol.FromAgent{Message: &protocol.FromAgent_Hello{Hello: &protocol.Hello{Version: protocol.Version}}})
	f.send(&protocol.FromAgent{Message: &protocol.FromAgent_Restore{Restore: &protocol.Restore{}}})
	for {
		m, fds := f.next()
		protocol.CloseAll(fds)
		if m.GetOffered() != nil {
			return offers
		}
		offers = append(offers, m.GetOffer().GetUid())
	}
}

func (f fakeAgent) add(uid, name string, listeners []int) {
	f.t.Helper()
	f.send(&protocol.FromAgent{Message: &protocol.FromAgent_Add{Add: &protocol.AddPod{
		Uid: uid, Name: name, Namespace: "ns", ServiceAccount: "sa", TrustDomain: "td", Addresses: [][]byte{{127, 0, 0, 1}},
	}}}, listeners...)
}

func (f fakeAgent) synced() {
	f.t.Helper()
	f.send(&protocol.FromAgent{Message: &protocol.FromAgent_Synced{Synced: &protocol.Synced{}}})
}

func listening(t *testing.T) []int {
	t.Helper()
	fds := bound(t)
	t.Cleanup(func() { protocol.CloseAll(fds) })
	return fds
}

// bound is listening, but to be closed by the caller.
func bound(t *testing.T) (fds []int) {
	t.Helper()
	for range protocol.ListenersPerPod {
		fd := descriptor(t)
		if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 1)); err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// What a proxy is told of pods over the life of two agents.
func TestAgentRestart(t *testing.T) {
	a, r, accept := startAgent(t)
	agent := accept()
	if offers := agent.greet(); offers != nil {
		t.Errorf("a new proxy offers %v", offers)
	}
	x, y := listening(t), listening(t)
	agent.add("x", "1", x)
	agent.add("y", "1", y)
	agent.synced()
	r.expect(t, "add x 1", "add y 1", "synced")
	sent, err := a.Save([]byte("state"))
	if err != nil {
		t.Fatal(err)
	}
	saved, ready := false, false
	for !saved || !ready {
		m, fds := agent.next()
		if m.GetSave() != nil {
			content, err := readState(fds[0])
			if saved = err == nil && string(content) == "state"; !saved {
				t.Fatalf("saved %q, %v", content, err)
			}
		}
		ready = ready || m.GetReady() != nil
	}
	<-sent

	there := a.Absence()
	if again := a.Absence(); there == 0 || again != there {
		t.Errorf("absent for %v and then %v, want the time before the first agent", there, again)
	}

	before := r.listeners("x")
	agent.Close()
	agent = accept() // by now its end was noticed
	away := a.Absence()
	if away <= there {
		t.Errorf("absent for %v altogether, want more than %v", away, there)
	}
	offers := agent.greet()
	slices.Sort(offers)
	if strings.Join(offers, " ") != "x y" {
		t.Errorf("offered %v, want x and y", offers)
	}
	agent.add("x", "1", x) // unchanged: nothing to tell
	agent.synced()
	r.expect(t, "gone y")
	if now, again := a.Absence(), a.Absence(); now <= away || again != now {
		t.Errorf("absent for %v, %v and %v altogether, want an end of it with the list of pods", away, now, again)
	}
	agent.add("x", "2", x)
	r.expect(t, "add x 2")
	if _, err := before.Outbound.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("what serves the earlier facts still accepts: %v", err)
	}
	now := r.listeners("x")
	for {
		m, fds := agent.next()
		protocol.CloseAll(fds)
		if m.GetSave() != nil {
			break // the new agent gets the state, too
		}
	}
	agent.send(&protocol.FromAgent{Message: &protocol.FromAgent_Drain{Drain: &protocol.Drain{}}})
	<-a.Draining()
	if _, err := now.Outbound.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a draining proxy accepts: %v", err)
	}
	if !isOpen(x[0]) {
		t.Error("the agent's own listener was closed")
	}
}

// A process that accepts nothing more gives its listeners to a new agent, but
// does not say that it is ready to serve. Pods that the agent has not got back
// stay; when its time is over, it ends.
func TestLeavingProxy(t *testing.T) {
	a, r, accept := startAgent(t)
	agent := accept()
	agent.greet()
	x := listening(t)
	agent.add("x", "1", x)
	agent.add("y", "1", listening(t))
	agent.synced()
	r.expect(t, "add x 1", "add y 1", "synced")
	a.Leave()
	agent.Close()

	agent = accept()
	if m, _ := agent.next(); !m.GetHello().GetDraining() {
		t.Errorf("greeting %v, want one that drains", m)
	}
	if n := agent.offers(); n != 2*protocol.ListenersPerPod {
		t.Errorf("%d listeners offered, want those of two pods", n)
	}
	agent.send(&protocol.FromAgent{Message: &protocol.FromAgent_Keep{Keep: &protocol.KeepPod{Uid: "x"}}})
	agent.synced()
	r.expect(t, "gone y")
	if m, _ := agent.next(); m.GetWant().GetUid() != "x" { // it goes on with x, and wants sockets for it
		t.Errorf("said %v", m)
	}
}

// offers greets a proxy that has said its greeting, and counts the listeners that
// come then.
func (f fakeAgent) offers() (n int) {
	f.t.Helper()
	f.send(&protocol.FromAgent{Message: &protocol.FromAgent_Hello{Hello: &protocol.Hello{Version: protocol.Version}}})
	for {
		m, fds := f.next()
		protocol.CloseAll(fds)
		n += len(fds)
		if m.GetOffered() != nil {
			return n
		}
	}
}

// An agent that has not named its pods yet has been there all the same: once it
// is gone, the listeners stay for the next one as long as ever.
func TestLeavingProxyBetweenAgents(t *testing.T) {
	a, r, accept := startAgent(t)
	agent := accept()
	agent.greet()
	agent.add("x", "1", listening(t))
	agent.synced()
	r.expect(t, "add x 1", "synced")
	agent.Close()
	agent = accept()
	agent.greet()
	a.mu.Lock()
	if a.left.IsZero() {
		t.Error("the agent is there before it has named its pods")
	}
	a.left = time.Now().Add(-time.Hour)
	a.leaving = a.left
	a.mu.Unlock()
	agent.Close()
	agent = accept()
	if m, _ := agent.next(); m.GetHello() == nil {
		t.Errorf("greeting %v", m)
	}
	if n := agent.offers(); n != protocol.ListenersPerPod {
		t.Errorf("%d listeners offered, want those of the pod", n)
	}
}

// Where neither agent nor proxy stays, the ports are free for somebody else,
// even while a connection lives on.
func TestLeftAlone(t *testing.T) {
	a, r, accept := startAgent(t)
	a.mu.Lock()
	a.patience = 100 * time.Millisecond
	a.mu.Unlock()
	agent := accept()
	agent.greet()
	x := bound(t)
	agent.add("x", "1", x)
	protocol.CloseAll(x) // the agent's
	agent.synced()
	r.expect(t, "add x 1", "synced")
	l := r.listeners("x").Outbound
	live, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()

	a.Leave()
	agent.Close()
	if c, err := l.Accept(); err == nil {
		t.Errorf("accepted %v", c)
	}
	a.mu.Lock() // what closes listeners holds it
	next, err := net.Listen("tcp", l.Addr().String())
	a.mu.Unlock()
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	next.Close()
	if _, err := live.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := accepted.Read(make([]byte, 1)); err != nil {
		t.Errorf("the live connection: %v", err)
	}
}

func TestDialWaitsForASocket(t *testing.T) {
	a, r, accept := startAgent(t)
	agent := accept()
	agent.greet()
	agent.add("x", "1", listening(t))
	agent.synced()
	r.expect(t, "add x 1", "synced")

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	dst := netip.MustParseAddrPort("127.0.0.1:1")
	if _, err := a.Dial(ctx, "x", netip.Addr{}, dst); !errors.Is(err, ErrNoSocket) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no socket came: %v", err)
	}
	if _, err := a.Dial(t.Context(), "z", netip.Addr{}, dst); err == nil || !strings.Contains(err.Error(), `"z"`) {
		t.Errorf("no such pod: %v", err)
	}
	if _, err := a.Dial(t.Context(), "x", netip.MustParseAddr("::1"), dst); err == nil {
		t.Error("mixed families")
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type result struct {
		c   *net.TCPConn
		err error
	}
	dialed := make(chan result, 1)
	go func() {
		c, err := a.Dial(t.Context(), "x", netip.Addr{}, l.Addr().(*net.TCPAddr).AddrPort())
		dialed <- result{c, err}
	}()
	for served := false; !served; {
		m, fds := agent.next()
		protocol.CloseAll(fds)
		if w := m.GetWant(); w != nil {
			fds := descriptors(t, int(w.GetCount()))
			agent.send(&protocol.FromAgent{Message: &protocol.FromAgent_Sockets{Sockets: &protocol.Sockets{Uid: w.GetUid(), Family: w.GetFamily(), Count: w.GetCount()}}}, fds...)
			protocol.CloseAll(fds)
			served = true
		}
	}
	got := <-dialed
	if got.err != nil {
		t.Fatal(got.err)
	}
	got.c.Close()
}

func TestProxyRefusesImpostors(t *testing.T) {
	for name, tt := range map[string]struct {
		mode os.FileMode
		uid  int
		want string
	}{
		"a directory that others may enter": {0o755, os.Geteuid(), "0700"},
		"an agent of another user":          {0o700, os.Geteuid() + 1, "runs as user"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, tt.mode); err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("unixpacket", filepath.Join(dir, "agent.sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			a := NewAgent(AgentConfig{Socket: filepath.Join(dir, "agent.sock"), AgentUID: tt.uid})
			if err := a.serve(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestListenerSurvivesPassingErrors(t *testing.T) {
	inner := &failing{errs: []error{unix.EMFILE, unix.ENFILE, net.ErrClosed}}
	l := newListener(inner)
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) || len(inner.errs) != 0 {
		t.Errorf("ended by %v with %d errors to come", err, len(inner.errs))
	}
	inner.errs = []error{unix.EMFILE, unix.EMFILE, unix.EMFILE, unix.EMFILE, unix.EMFILE, unix.EMFILE, unix.EMFILE, unix.EMFILE, unix.EMFILE, unix.EMFILE}
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed, but %v", err)
	}
}

type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, err
}

func (f *failing) Close() error { return nil }

func TestStateCannotBeChanged(t *testing.T) {
	s, err := newState([][]byte{[]byte("con"), nil, []byte("tent")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if _, err := s.f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("written to")
	}
	if err := s.f.Truncate(0); err == nil {
		t.Error("cut")
	}
}
