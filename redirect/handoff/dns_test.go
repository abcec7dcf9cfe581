package handoff

import (
	"net"
	"testing"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/redirect/netns"
)

// A proxy of before there was DNS gets the listeners that it knows.
func TestWhoGetsListenersForDNS(t *testing.T) {
	listeners, dns := sockets(t, "tcp", "tcp", "tcp"), sockets(t, "udp", "tcp")
	for version, want := range map[uint32]int{protocol.HandsDNS: 5, protocol.HandsDNS - 1: 3} {
		s := New(Config{})
		s.pods["u"] = &entry{Pod: Pod{UID: "u", Name: "web", DNS: true}, listeners: listeners, dns: dns}
		m, fds, err := s.newsOf(&proxy{version: version, news: map[string]bool{"u": false}}, "u")
		if err != nil {
			t.Fatal(err)
		}
		if m.GetAdd() == nil || len(fds) != want {
			t.Errorf("version %d: %v with %d listeners, want %d", version, m, len(fds), want)
		}
		protocol.CloseAll(fds)
	}
}

// sockets are listeners on loopback.
func sockets(t *testing.T, networks ...string) (fds []int) {
	t.Helper()
	for _, network := range networks {
		var file interface{ Fd() uintptr }
		if network == "udp" {
			c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			f, err := c.File()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = c.Close(), f.Close() })
			file = f
		} else {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			f, err := l.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = l.Close(), f.Close() })
			file = f
		}
		fds = append(fds, int(file.Fd()))
	}
	return fds
}

// A proxy's word is not taken for what the sockets are that it offers.
func TestOfferedSocketsAreLookedAt(t *testing.T) {
	ns, err := netns.Open(netns.Own)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	for name, tt := range map[string]struct {
		network   string
		datagrams bool
		port      int // more than the socket's
		ok        bool
	}{
		"TCP": {"tcp", false, 0, true}, "UDP": {"udp", true, 0, true},
		"UDP for TCP": {"udp", false, 0, false}, "TCP for UDP": {"tcp", true, 0, false}, "another port": {"udp", true, 1, false},
	} {
		fd := sockets(t, tt.network)[0]
		port, err := localPort(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkListener(fd, ns, port+tt.port, tt.datagrams); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
