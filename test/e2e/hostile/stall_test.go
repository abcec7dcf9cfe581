package hostile

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// flow is a server that sends without end.
func flow(c *net.TCPConn) {
	data := make([]byte, 64<<10)
	for err := error(nil); err == nil; {
		_, err = c.Write(data)
	}
}

// swallow is a server that takes a little and reads no more, until the end.
func swallow(until <-chan struct{}) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		_ = c.SetReadBuffer(4096)
		_, _ = c.Read(make([]byte, 1))
		<-until
	}
}

// A peer that gives its streams no window, one that gives them all and then
// does not read its TCP connection, and applications that do not read what a
// peer sends: none of it is kept in memory without bound, and nobody else
// waits.
func TestStalledPeers(t *testing.T) {
	const streams = 200
	m, ca := start(t)
	end := make(chan struct{})
	m.Serve("mesh/server", ":9001", flow)
	m.Serve("mesh/server", ":9002", swallow(end))
	t.Cleanup(func() { close(end) })
	undisturbed := bystander(t, m)
	defer undisturbed()
	open := func(t *testing.T, port string, settings ...http2.Setting) *attacker {
		a := attack(t, m, ca, "mesh/client", victimHBONE)
		if err := a.WriteSettings(settings...); err != nil {
			t.Fatal(err)
		}
		for i := range uint32(streams) {
			if err := a.connect(2*i+1, victim+":"+port); err != nil {
				t.Fatal(err)
			}
		}
		return a
	}
	accepted := func(t *testing.T, a *attacker) {
		for n := 0; n < streams; {
			f, err := a.ReadFrame()
			if err != nil {
				t.Fatalf("after %d answers: %v", n, err)
			}
			if h, ok := f.(*http2.MetaHeadersFrame); ok {
				if h.PseudoValue("status") != "200" {
					t.Fatalf("answered with %s", h.PseudoValue("status"))
				}
				n++
			}
		}
	}
	bounded := func(t *testing.T, before usage) {
		t.Helper()
		if _, err := m.Call("mesh/twin", victim+":8080"); err != nil {
			t.Errorf("a call beside it: %v", err)
		}
		if now := usageOf(t, m, "b"); now.memory > before.memory+memory {
			t.Errorf("%d MB before, %d MB with stalled streams", before.memory>>20, now.memory>>20)
		}
	}
	t.Run("no window", func(t *testing.T) {
		before := usageOf(t, m, "b")
		a := open(t, "9001", http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		accepted(t, a)
		bounded(t, before)
		// It may still have one byte each.
		for i := range uint32(streams) {
			if err := a.WriteWindowUpdate(2*i+1, 1); err != nil {
				t.Fatal(err)
			}
		}
		for n := 0; n < streams; {
			f, err := a.ReadFrame()
			if err != nil {
				t.Fatalf("after %d bytes: %v", n, err)
			}
			if d, ok := f.(*http2.DataFrame); ok {
				n += len(d.Data())
			}
		}
	})
	t.Run("no reading", func(t *testing.T) {
		before := usageOf(t, m, "b")
		a := open(t, "9001", http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
		if err := a.WriteWindowUpdate(0, 1<<31-1-65535); err != nil {
			t.Fatal(err)
		}
		m.Eventually("all streams are there", func() error {
			if n := len(m.Connections("b", "live", "mesh/client", "mesh/server")); n < streams {
				return fmt.Errorf("%d streams", n)
			}
			return nil
		})
		bounded(t, before)
	})
	t.Run("applications that do not read", func(t *testing.T) {
		before := usageOf(t, m, "b")
		var sent atomic.Int64
		for range 8 { // 1600 streams
			a := open(t, "9002")
			accepted(t, a)
			go a.press(streams, &sent)
		}
		m.Eventually("nothing moves any more", unchanged(&sent))
		bounded(t, before)
		t.Logf("%d MB were taken of the peers, some of it by the kernel", sent.Load()>>20)
	})
}

// press sends on the first so many streams whatever their windows allow, until
// the connection ends.
func (a *attacker) press(streams int, sent *atomic.Int64) {
	data := make([]byte, 16<<10)
	send := func(id uint32, window int) {
		for window > 0 {
			n := min(window, len(data))
			if a.WriteData(id, false, data[:n]) != nil {
				return
			}
			window -= n
			sent.Add(int64(n))
		}
	}
	for i := range uint32(streams) {
		send(2*i+1, 64<<10)
	}
	for {
		f, err := a.ReadFrame()
		if err != nil {
			return
		}
		if w, ok := f.(*http2.WindowUpdateFrame); ok && w.StreamID != 0 {
			send(w.StreamID, int(w.Increment))
		}
	}
}

// unchanged is a check that is content once the number has stayed as it is
// for some looks in a row.
func unchanged(n *atomic.Int64) func() error {
	var last int64
	looks := 0
	return func() error {
		now := n.Load()
		if now != last {
			last, looks = now, 0
		}
		if looks++; looks < 50 {
			return fmt.Errorf("%d look(s) at %d", looks, now)
		}
		return nil
	}
}

// A peer whose host is gone, without a word, is given up after a while; what
// it had is given back.
func TestVanishedPeer(t *testing.T) {
	t.Parallel() // it waits for deadlines
	m, ca := start(t)
	m.Serve("mesh/server", ":9001", flow)
	undisturbed := bystander(t, m)
	defer undisturbed()
	gone := rises(t, m, "b", "tacit_peer_cuts_total", "cause=ping_timeout")
	a := attack(t, m, ca, "outside/plain", victimHBONE)
	for i := range uint32(10) {
		if err := a.connect(2*i+1, victim+":9001"); err != nil {
			t.Fatal(err)
		}
		if got := a.answer(2*i + 1); got != "200" {
			t.Fatalf("answered with %s", got)
		}
	}
	err := m.Pod("outside/plain").Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(m.Connections("b", "live", "", "mesh/server")); n < 10 {
		t.Errorf("%d connections are live, want those of the peer that is gone", n)
	}
	gone()
	m.Eventually("its connections are gone", func() error {
		for _, c := range m.Connections("b", "live", "", "mesh/server") {
			if c.Source.Address.Addr() == m.Pod("outside/plain").Address() {
				return fmt.Errorf("%v is live", c.Source.Address)
			}
		}
		return nil
	})
}

// Two pods of one account, on one node, calling one server at once: each gets
// its own bytes and no others.
func TestNoBytesAcrossPods(t *testing.T) {
	m, _ := start(t)
	const calls, volume = 30, 200_000
	var callers sync.WaitGroup
	for _, pod := range []string{"mesh/client", "mesh/twin"} {
		for n := range calls {
			callers.Go(func() {
				if err := exchange(m, pod, byte(n), volume); err != nil {
					t.Errorf("%s, call %d: %v", pod, n, err)
				}
			})
		}
	}
	callers.Wait()
}

// exchange sends a pattern of the pod's own to an echo server and wants just
// that back, behind the pod's own address.
func exchange(m *e2e.Mesh, pod string, salt byte, volume int) error {
	c, err := m.Pod(pod).Dial(m.Context(), victim+":8080")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(deadline())
	pattern := bytes.Repeat(append([]byte(pod), salt), volume/12)
	go func() {
		_, _ = c.Write(pattern)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	want := append([]byte(m.Pod(pod).Address().String()+"\n"), pattern...)
	if !bytes.Equal(got, want) {
		return fmt.Errorf("got %d bytes %.40q..., want %d bytes %.40q", len(got), got, len(want), want)
	}
	return nil
}
