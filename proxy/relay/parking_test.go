package relay

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// sleeper is a connection that tells what the parking asks of it.
type sleeper struct {
	moved   atomic.Int64
	restful chan struct{}
	woken   chan struct{}
}

func newSleeper() *sleeper {
	return &sleeper{restful: make(chan struct{}, 100), woken: make(chan struct{}, 100)}
}

func (s *sleeper) Moved() int64 { return s.moved.Load() }
func (s *sleeper) Wake()        { s.woken <- struct{}{} }

func (s *sleeper) Rest() {
	select {
	case s.restful <- struct{}{}:
	default:
	}
}

func newParking(t *testing.T, idle time.Duration) *Parking {
	t.Helper()
	p, err := NewParking(idle)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := within(t, done); !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	return p
}

// parked is a socket that is watched, and its peer.
func parked(t *testing.T, p *Parking, c Parkable) (spot Spot, peer *net.TCPConn) {
	t.Helper()
	near, peer := tcpPair(t)
	s, err := NewSocket(near)
	if err != nil {
		t.Fatal(err)
	}
	p.Enter(c)
	if spot, err = p.Park(s, c); err != nil {
		t.Fatal(err)
	}
	return spot, peer
}

func TestParkedAreWoken(t *testing.T) {
	p := newParking(t, time.Hour)
	cases := map[string]func(peer *net.TCPConn){
		"bytes": func(peer *net.TCPConn) { peer.Write([]byte("x")) },
		"FIN":   func(peer *net.TCPConn) { peer.CloseWrite() },
		"RST": func(peer *net.TCPConn) {
			peer.SetLinger(0)
			peer.Close()
		},
	}
	for name, event := range cases {
		t.Run(name, func(t *testing.T) {
			bystander := newSleeper()
			parked(t, p, bystander)
			c := newSleeper()
			spot, peer := parked(t, p, c)
			event(peer)
			within(t, c.woken)
			s, err := p.Unpark(spot)
			if err != nil {
				t.Fatal(err)
			}
			if len(bystander.woken) > 0 {
				t.Error("another was woken")
			}
			// What has come already counts as well.
			again, err := p.Park(s, c)
			if err != nil {
				t.Fatal(err)
			}
			within(t, c.woken)
			if s, err = p.Unpark(again); err != nil {
				t.Fatal(err)
			}
			s.Close()
			p.Leave(c)
		})
	}
}

// The next socket may have the descriptor of one that was parked and closed.
func TestParkedAndClosed(t *testing.T) {
	p := newParking(t, time.Hour)
	old := newSleeper()
	spot, peer := parked(t, p, old)
	peer.Write([]byte("x"))
	within(t, old.woken) // it has an event, which may not be the last word
	s, err := p.Unpark(spot)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	peer.Close()
	c := newSleeper()
	_, peer = parked(t, p, c)
	peer.Write([]byte("x"))
	within(t, c.woken)
	if len(old.woken) > 0 {
		t.Error("events of one socket woke another")
	}
	if n := p.Parked(); n != 1 {
		t.Errorf("%d parked, want the new one", n)
	}
}

// mover has moved more at each look.
type mover struct{ *sleeper }

func (m mover) Moved() int64 { return m.moved.Add(1) }

func TestIdleAreAskedToRest(t *testing.T) {
	p := newParking(t, time.Millisecond)
	for range 2 { // also after a time with nobody to look at
		idle, busy := newSleeper(), mover{newSleeper()}
		p.Enter(busy)
		p.Enter(idle)
		for range 3 {
			within(t, idle.restful)
		}
		p.Leave(idle)
		p.Leave(busy)
		if n := len(busy.restful); n > 0 {
			t.Errorf("what moves bytes was asked to rest %d times", n)
		}
	}
}

// Who cannot rest, as its application does not read, is asked ever more rarely,
// until it moves something.
func TestAskedInVain(t *testing.T) {
	p, err := NewParking(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer p.set.Close()
	c := newSleeper()
	p.Enter(c)
	asked := func(looks int) (times int) {
		for range looks {
			idle, _ := p.look(nil)
			times += len(idle)
		}
		return times
	}
	if n := asked(100 * longestPause); n < 100 || n > 120 {
		t.Errorf("asked %d times in 100 minutes", n)
	}
	c.moved.Add(1)
	if n := asked(3); n != 1 {
		t.Errorf("asked %d times after it has moved", n)
	}
}

// Where the set fails, whoever runs the parking hears of it.
func TestParkingFails(t *testing.T) {
	p, err := NewParking(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(t.Context()) }()
	p.set.Close()
	if err := within(t, done); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}
