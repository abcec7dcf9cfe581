package sockets

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

const (
	firstAcceptPause = 5 * time.Millisecond
	lastAcceptPause  = time.Second
)

// listener survives what only passes, such as a lack of descriptors.
type listener struct {
	net.Listener
	closed    chan struct{}
	closeOnce sync.Once
}

func newListener(l net.Listener) *listener {
	return &listener{Listener: l, closed: make(chan struct{})}
}

// Accept returns an error only when the listener is closed.
func (l *listener) Accept() (net.Conn, error) {
	for pause := firstAcceptPause; ; pause = min(2*pause, lastAcceptPause) {
		c, err := l.Listener.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return c, err
		}
		if !l.rest(pause) {
			return nil, net.ErrClosed
		}
	}
}

// rest reports whether the listener is still open after a pause.
func (l *listener) rest(pause time.Duration) bool {
	select {
	case <-time.After(pause):
		return true
	case <-l.closed:
		return false
	}
}

func (l *listener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// newListeners takes over descriptors: outbound, plaintext, HBONE, and then
// pairs of UDP and TCP for DNS.
func newListeners(fds []int) (Listeners, error) {
	var listeners Listeners
	var err error
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "listener")
		if err == nil {
			err = listeners.add(i, f)
		}
		f.Close() // a copy has been made
	}
	if err != nil {
		listeners.Close()
		return Listeners{}, fmt.Errorf("listeners: %w", err)
	}
	return listeners, nil
}

// add puts the listener with this index into its place.
func (l *Listeners) add(index int, f *os.File) error {
	behind := index - protocol.ListenersPerPod
	if behind >= 0 && behind%2 == 0 {
		raw, err := net.FilePacketConn(f)
		if err != nil {
			return err
		}
		if l.DNS == nil {
			l.DNS = &DNS{}
		}
		l.DNS.UDP = append(l.DNS.UDP, &Packets{UDPConn: raw.(*net.UDPConn)})
		return nil
	}
	raw, err := net.FileListener(f)
	if err != nil {
		return err
	}
	made := newListener(raw)
	switch index {
	case 0:
		l.Outbound = made
	case 1:
		l.Plaintext = made
	case 2:
		l.HBONE = made
	default:
		l.DNS.TCP = append(l.DNS.TCP, made)
	}
	return nil
}

func (l Listeners) all() []net.Listener {
	all := []net.Listener{l.Outbound, l.Plaintext, l.HBONE}
	if l.DNS != nil {
		all = append(all, l.DNS.TCP...)
	}
	return all
}

// Close closes this process's descriptors; the sockets live on where there are
// others.
func (l Listeners) Close() {
	for _, x := range l.all() {
		if x != nil {
			x.Close()
		}
	}
	if l.DNS != nil {
		for _, p := range l.DNS.UDP {
			p.Close()
		}
	}
}

// Packets is a socket of which what was read may be answered after its close:
// another process may have the same one, and reads on.
type Packets struct {
	*net.UDPConn

	mu     sync.Mutex
	users  int
	closed bool
}

// Use keeps the socket open until done is called. It is not ok once the socket
// is closed.
func (p *Packets) Use() (done func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, false
	}
	p.users++
	return sync.OnceFunc(p.leave), true
}

func (p *Packets) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users--
	if p.closed && p.users == 0 {
		p.UDPConn.Close()
	}
}

// Close ends all reads, and the socket itself once nobody uses it.
func (p *Packets) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	p.closed = true
	if p.users == 0 {
		return p.UDPConn.Close()
	}
	return p.UDPConn.SetReadDeadline(time.Unix(1, 0))
}
