package sockets

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

// withDNS are a pod's listeners with those for DNS over IPv4.
func withDNS(t *testing.T) []int {
	t.Helper()
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(udp) })
	if err := unix.Bind(udp, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	return append(append(listening(t), udp), listening(t)[0])
}

// Listeners for DNS come with the others, and go back to an agent that has
// restarted, unless it is one of before there were any.
func TestListenersForDNS(t *testing.T) {
	_, r, accept := startAgent(t)
	agent := accept()
	agent.greet()
	agent.add("x", "1", withDNS(t))
	agent.add("y", "1", listening(t))
	agent.synced()
	r.expect(t, "add x 1", "add y 1", "synced")
	if got := r.listeners("x").DNS; got == nil || len(got.UDP) != 1 || len(got.TCP) != 1 {
		t.Errorf("listeners for DNS are %+v", got)
	}
	if got := r.listeners("y").DNS; got != nil {
		t.Errorf("listeners for DNS of another pod are %+v", got)
	}
	for version, want := range map[uint32]int{protocol.HandsDNS: 2*protocol.ListenersPerPod + 2, protocol.HandsDNS - 1: 2 * protocol.ListenersPerPod} {
		agent.Close()
		agent = accept()
		agent.next()
		agent.send(&protocol.FromAgent{Message: &protocol.FromAgent_Hello{Hello: &protocol.Hello{Version: version}}})
		agent.send(&protocol.FromAgent{Message: &protocol.FromAgent_Restore{Restore: &protocol.Restore{}}})
		offers := 0
		for offered := false; !offered; {
			m, fds := agent.next()
			protocol.CloseAll(fds)
			offers += len(fds)
			offered = m.GetOffered() != nil
		}
		if offers != want {
			t.Errorf("an agent of version %d is offered %d listeners, want %d", version, offers, want)
		}
	}
}

// What was read before the close of a socket is answered after it; nothing more
// is read.
func TestPacketsAreAnsweredAfterTheClose(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("udp", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := &Packets{UDPConn: conn}
	done, ok := p.Use()
	if err := p.Close(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := p.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read after the close: %v", err)
	}
	if _, ok := p.Use(); ok {
		t.Error("in use after the close")
	}
	if _, err := p.WriteTo([]byte("answer"), client.LocalAddr()); err != nil {
		t.Errorf("an answer after the close: %v", err)
	}
	if err := client.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Read(make([]byte, 10)); n != 6 || err != nil {
		t.Errorf("%d bytes of the answer, %v", n, err)
	}
	done()
	if _, err := p.WriteTo([]byte("answer"), client.LocalAddr()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("open after its last use: %v", err)
	}
	if err := p.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second close: %v", err)
	}
}
