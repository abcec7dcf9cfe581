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
		select {
		case <-time.After(pause):
		case <-l.closed:
			return nil, net.ErrClosed
		}
	}
}

func (l *listener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// newListeners takes over three descriptors, in the order outbound,
// plaintext, HBONE.
func newListeners(fds []int) (Listeners, error) {
	var l [protocol.ListenersPerPod]net.Listener
	var err error
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "listener")
		if err == nil {
			var raw net.Listener
			if raw, err = net.FileListener(f); err == nil {
				l[i] = newListener(raw)
			}
		}
		f.Close() // FileListener has made a copy
	}
	listeners := Listeners{Outbound: l[0], Plaintext: l[1], HBONE: l[2]}
	if err != nil {
		listeners.close()
		return Listeners{}, fmt.Errorf("listeners: %w", err)
	}
	return listeners, nil
}

func (l Listeners) all() []net.Listener { return []net.Listener{l.Outbound, l.Plaintext, l.HBONE} }

func (l Listeners) close() {
	for _, x := range l.all() {
		if x != nil {
			x.Close()
		}
	}
}
