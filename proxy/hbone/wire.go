package hbone

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// Wire is the TCP connection under a TLS connection. Made with NewWire and
// given to tls.Server, it lets Serve wait for a peer without a buffer and send
// several TLS records with one system call.
type Wire struct {
	net.Conn
	raw syscall.RawConn

	// Of the reader, once it polls: the descriptor while inside poll.
	polling bool
	fd      int
	reader  relay.Reader

	// The reader writes too: alerts, and answers to key updates.
	mu      sync.Mutex // guards what follows
	corked  bool
	held    *relay.Buffer
	n       int
	writing []byte // what is left
	failed  error
	onWrite func(uintptr) bool // made once
}

// NewWire wraps a TCP connection that is to carry TLS.
func NewWire(c *net.TCPConn) (*Wire, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &Wire{Conn: c, raw: raw}
	w.onWrite = w.tryWrite
	return w, nil
}

// wouldBlock is what crypto/tls gets from a read that would wait: a temporary
// error leaves its state as it is, so that the read can be repeated.
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "nothing to read yet" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// errWouldBlock is boxed once.
var errWouldBlock error = wouldBlock{}

// poll calls readable now and each time that there may be something to read,
// until it returns true. Reads inside it return errWouldBlock when there is
// nothing more.
func (w *Wire) poll(readable func() bool) error {
	w.polling = true
	defer func() { w.polling = false }()
	return w.raw.Read(func(fd uintptr) bool {
		w.fd = int(fd)
		return readable()
	})
}

// Read is the next bytes of the TLS connection.
func (w *Wire) Read(p []byte) (int, error) {
	if !w.polling {
		return w.Conn.Read(p)
	}
	n, err := w.reader.Read(w.fd, p)
	switch {
	case n > 0:
		return n, nil
	case err == unix.EAGAIN: //nolint:errorlint // returned as it is
		return 0, errWouldBlock
	case err != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: w.LocalAddr(), Addr: w.RemoteAddr(), Err: err}
	default:
		return 0, io.EOF
	}
}

// Write sends a TLS record, or keeps it until uncork.
func (w *Wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.corked {
		return w.send(p)
	}
	if w.held == nil {
		w.held = relay.Get(relay.Large)
	}
	if w.n+len(p) > len(w.held.B) {
		if _, err := w.send(w.held.B[:w.n]); err != nil {
			return 0, err
		}
		w.n = 0
	}
	w.n += copy(w.held.B[w.n:], p)
	return len(p), nil
}

func (w *Wire) cork() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.corked = true
}

// uncork sends what was held and gives the memory back.
func (w *Wire) uncork() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.corked = false
	if w.held == nil {
		return nil
	}
	_, err := w.send(w.held.B[:w.n])
	w.held.Free()
	w.held, w.n = nil, 0
	return err
}

// send waits until the kernel has all of p. Called with mu held.
func (w *Wire) send(p []byte) (int, error) {
	w.writing, w.failed = p, nil
	err := w.raw.Write(w.onWrite)
	if err == nil && w.failed != nil {
		err = &net.OpError{Op: "write", Net: "tcp", Source: w.LocalAddr(), Addr: w.RemoteAddr(), Err: w.failed}
	}
	n := len(p) - len(w.writing)
	w.writing = nil
	return n, err
}

func (w *Wire) tryWrite(fd uintptr) (done bool) {
	for len(w.writing) > 0 {
		n, err := relay.Write(int(fd), w.writing)
		if err == unix.EAGAIN { //nolint:errorlint // returned as it is
			return false
		}
		if err != nil {
			w.failed = os.NewSyscallError("write", err)
			return true
		}
		w.writing = w.writing[n:]
	}
	return true
}

// peerEnded reports whether the peer's FIN or RST has come, which the reader may
// not have seen yet.
func (w *Wire) peerEnded() bool {
	ended := true
	err := w.raw.Control(func(fd uintptr) {
		events := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(events[:], 0)
		ended = err == nil && n > 0
	})
	return ended || err != nil
}

// shut ends both directions without waiting for goroutines that use the
// connection, as Close does.
func (w *Wire) shut() {
	err := w.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	if err != nil && !errors.Is(err, net.ErrClosed) {
		w.Conn.Close()
	}
}

// closeWrite sends FIN.
func (w *Wire) closeWrite() {
	_ = w.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
}
