package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrInterrupted is returned by a wait that Interrupt ended.
	ErrInterrupted = errors.New("wait interrupted")
	// ErrWouldBlock is returned by a read that was asked not to wait.
	ErrWouldBlock = errors.New("nothing to read yet")
)

// past is a deadline that has expired, which is how a waiting goroutine is woken.
var past = time.Unix(1, 0)

// Socket drives a TCP connection: reads that take a buffer only once there is
// something to read, and writes that never wait. One goroutine may read while
// another writes. It allocates when it is made and never again.
type Socket struct {
	conn   descriptor
	raw    syscall.RawConn
	closed atomic.Bool
	ended  atomic.Bool // FIN was sent

	reader Reader
	read   reading
	write  writing
	reset  error
	// Made once: a closure per call would be an allocation per message.
	onRead, onReset, onFlush func(uintptr) bool
	onWrite                  func(uintptr)
}

// descriptor is what drives a socket: a *net.TCPConn, or an *os.File.
type descriptor interface {
	syscall.Conn
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	Close() error
}

type reading struct {
	class, head, limit int
	wait               bool
	buf                *Buffer
	n                  int
	err                error
}

type writing struct {
	p   []byte
	n   int
	err error
}

// NewSocket wraps c, which stays open.
func NewSocket(c *net.TCPConn) (*Socket, error) { return newSocket(c) }

func newSocket(c descriptor) (*Socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("relay socket: %w", err)
	}
	s := &Socket{conn: c, raw: raw}
	s.onRead = s.tryRead
	s.onReset = s.tryReset
	s.onWrite = func(fd uintptr) { s.write.try(int(fd)) }
	s.onFlush = func(fd uintptr) bool {
		s.write.try(int(fd))
		return s.write.err != nil || len(s.write.p) == s.write.n
	}
	return s, nil
}

// Read waits without a buffer until there is something to read, then reads at
// most limit bytes behind head bytes left free in a pooled buffer, which the
// caller frees. Without wait it returns ErrWouldBlock instead of waiting. FIN
// is io.EOF.
func (s *Socket) Read(class, head, limit int, wait bool) (*Buffer, int, error) {
	s.read = reading{class: class, head: head, limit: limit, wait: wait}
	if err := s.raw.Read(s.onRead); err != nil {
		return nil, 0, s.waitError(err)
	}
	r := &s.read
	if r.err != nil {
		return nil, 0, r.err
	}
	return r.buf, r.n, nil
}

func (s *Socket) tryRead(fd uintptr) bool {
	r := &s.read
	buf := Get(r.class)
	n, err := s.reader.Read(int(fd), buf.B[r.head:min(len(buf.B), r.head+r.limit)])
	if n > 0 {
		r.buf, r.n = buf, n
		return true
	}
	buf.Free()
	switch {
	case errors.Is(err, unix.EAGAIN) && r.wait:
		return false
	case errors.Is(err, unix.EAGAIN):
		r.err = ErrWouldBlock
	case err != nil:
		r.err = os.NewSyscallError("read", err)
	case closed(int(fd)) && !s.ended.Load():
		// The reset's error went to a write; this is not the peer's FIN. Asked
		// in this order, because FIN sent meanwhile may close it, too.
		r.err = os.NewSyscallError("read", unix.ECONNRESET)
	default:
		r.err = io.EOF
	}
	return true
}

// WaitReset waits until the connection is reset, which it returns as an error,
// also when its FIN has been read before: the poller reports each event once
// and a read would go on returning EOF.
func (s *Socket) WaitReset() error {
	s.reset = nil
	if err := s.raw.Read(s.onReset); err != nil {
		return s.waitError(err)
	}
	return s.reset
}

func (s *Socket) tryReset(fd uintptr) bool {
	s.reset = socketError(int(fd))
	return s.reset != nil
}

func socketError(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return os.NewSyscallError("getsockopt", err)
	case code == 0:
		return nil
	case !closed(fd): // an ICMP message, which TCP survives
		return nil
	case unix.Errno(code) == unix.EPIPE: // what a reset after FIN is called
		return os.NewSyscallError("read", unix.ECONNRESET)
	default:
		return os.NewSyscallError("read", unix.Errno(code))
	}
}

func closed(fd int) bool {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	return err != nil || info.State == unix.BPF_TCP_CLOSE
}

// Write writes what the kernel takes at once; n < len(p) without an error
// means that it takes no more now.
func (s *Socket) Write(p []byte) (n int, err error) {
	s.write = writing{p: p}
	if err := s.raw.Control(s.onWrite); err != nil {
		return 0, err
	}
	n, err = s.write.n, s.write.err
	s.write.p = nil
	return n, err
}

func (w *writing) try(fd int) {
	for w.n < len(w.p) {
		n, err := Write(fd, w.p[w.n:])
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			w.err = os.NewSyscallError("write", err)
			return
		}
		w.n += n
	}
}

// WriteAll writes p, waiting as long as it takes. Each time it has waited for
// a second it asks stalled, whose error ends it.
func (s *Socket) WriteAll(p []byte, stalled func() error) error {
	s.write = writing{p: p}
	return s.flush(s.onFlush, stalled)
}

func (s *Socket) flush(ready func(uintptr) bool, stalled func() error) error {
	for {
		_ = s.conn.SetWriteDeadline(time.Now().Add(time.Second))
		err := s.raw.Write(ready)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if err := stalled(); err != nil {
				return err
			}
			continue
		}
		if err == nil {
			err = s.write.err
		}
		s.write.p = nil
		if err != nil {
			return &writeError{socket: s, err: err}
		}
		return nil
	}
}

// writeError tells a failed write from a failed read.
type writeError struct {
	socket *Socket
	err    error
}

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// Err returns the error that ended the connection, if one did. It is consumed.
func (s *Socket) Err() error {
	var failed error
	if err := s.raw.Control(func(fd uintptr) { failed = socketError(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// WaitWrite calls ready now and whenever the socket may take more, until it
// returns true. ready may use the descriptor for writes that do not wait.
func (s *Socket) WaitWrite(ready func(fd uintptr) bool) error { return s.raw.Write(ready) }

// CloseWrite sends FIN behind what was written.
func (s *Socket) CloseWrite() error {
	s.ended.Store(true)
	var failed error
	if err := s.raw.Control(func(fd uintptr) { failed = unix.Shutdown(int(fd), unix.SHUT_WR) }); err != nil {
		return err
	}
	return os.NewSyscallError("shutdown", failed)
}

// Interrupt makes the current or next Read or WaitReset return
// ErrInterrupted, and those after it, until Resume.
func (s *Socket) Interrupt() { _ = s.conn.SetReadDeadline(past) }

// Resume ends the effect of Interrupt. What made others interrupt is to be
// looked at after it, not before.
func (s *Socket) Resume() { _ = s.conn.SetReadDeadline(time.Time{}) }

// Reset closes the connection with RST and ends all waits on it.
func (s *Socket) Reset() {
	if s.closed.CompareAndSwap(false, true) {
		_ = s.raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		})
		s.conn.Close()
	}
}

// Close closes the connection and ends all waits on it.
func (s *Socket) Close() {
	if s.closed.CompareAndSwap(false, true) {
		s.conn.Close()
	}
}

// duplicate is another descriptor of the same socket.
func (s *Socket) duplicate() (fd int, err error) {
	if cause := s.raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) }); cause != nil {
		return 0, cause
	}
	return fd, os.NewSyscallError("fcntl", err)
}

func (s *Socket) waitError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrInterrupted
	}
	return err
}
