package lifecycle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// stream is a connection that lives through what a test does, and on which
// nothing may be lost.
type stream struct {
	name string
	ends [2]*net.TCPConn // the client's and the server's
	said [2]*rand.ChaCha8
}

const (
	clientEnd = iota
	serverEnd
)

// openStream connects two pods on a port that nothing else uses.
func openStream(t *testing.T, m *e2e.Mesh, from, to string, port int) *stream {
	t.Helper()
	s, err := tryStream(m, from, to, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.abort)
	return s
}

func tryStream(m *e2e.Mesh, from, to string, port int) (*stream, error) {
	l, err := m.Pod(to).Listen(fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	s := &stream{name: from + " to " + to}
	for i := range s.ends {
		s.said[i] = rand.NewChaCha8([32]byte{byte(port), byte(i)})
	}
	dialed := make(chan error, 1)
	go func() {
		var err error
		s.ends[clientEnd], err = m.Pod(from).Dial(m.Context(), net.JoinHostPort(m.Pod(to).Address().String(), fmt.Sprint(port)))
		dialed <- err
	}()
	if err := <-dialed; err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(e2e.Patience)); err != nil {
		return nil, err
	}
	c, err := l.Accept()
	if err != nil {
		_ = s.ends[clientEnd].Close()
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	s.ends[serverEnd] = c.(*net.TCPConn)
	return s, nil
}

// speak sends random bytes from one end and expects them at the other.
func (s *stream) speak(end, size int) error {
	sent, got := make([]byte, size), make([]byte, size)
	_, _ = s.said[end].Read(sent) // never fails
	deadline := time.Now().Add(e2e.Patience)
	for _, c := range s.ends {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := s.ends[end].Write(sent)
		wrote <- err
	}()
	_, err := io.ReadFull(s.ends[1-end], got)
	if err == nil {
		err = <-wrote
	}
	if err == nil && !bytes.Equal(sent, got) {
		err = fmt.Errorf("bytes were changed")
	}
	if err != nil {
		return fmt.Errorf("stream from %s, end %d speaking: %w", s.name, end, err)
	}
	return nil
}

// finish closes each half in turn; the other one works meanwhile.
func (s *stream) finish() error {
	for end := range s.ends {
		if err := s.ends[end].CloseWrite(); err != nil {
			return err
		}
		if err := s.ends[1-end].SetReadDeadline(time.Now().Add(e2e.Patience)); err != nil {
			return err
		}
		if n, err := s.ends[1-end].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			return fmt.Errorf("stream from %s: FIN arrived as %d bytes, %w", s.name, n, err)
		}
		if end == clientEnd {
			if err := s.speak(serverEnd, 1000); err != nil {
				return fmt.Errorf("after a half close: %w", err)
			}
		}
	}
	return nil
}

// ended waits for the end of the stream at one end of it: io.EOF, or the errno.
func (s *stream) ended(end int) error {
	if err := s.ends[end].SetReadDeadline(time.Now().Add(e2e.Patience)); err != nil {
		return err
	}
	n, err := s.ends[end].Read(make([]byte, 1))
	if n > 0 {
		return errors.New("bytes that nobody sent")
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}

// abort closes both ends as the end of their processes would, or harder.
func (s *stream) abort() {
	for _, c := range s.ends {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// address is the client's.
func (s *stream) address() string { return s.ends[clientEnd].LocalAddr().String() }

// flow is a stream that never rests.
type flow struct {
	*stream
	quit chan struct{}
	done chan error
}

func startFlow(s *stream) *flow {
	f := &flow{s, make(chan struct{}), make(chan error, 1)}
	go func() { f.done <- f.run() }()
	return f
}

func (f *flow) run() error {
	for {
		for end, size := range []int{20_000, 50_000} {
			if err := f.speak(end, size); err != nil {
				return err
			}
		}
		select {
		case <-f.quit:
			return f.finish()
		default:
		}
	}
}

// end finishes the stream and returns what went wrong over its whole life.
func (f *flow) end() error {
	close(f.quit)
	return <-f.done
}

// startFlows opens one along each of the paths between pods.
func startFlows(t *testing.T, m *e2e.Mesh, port int) (endAll func()) {
	t.Helper()
	var flows []*flow
	for i, p := range [][2]string{
		{"mesh/client", "mesh/server"}, {"mesh/server", "mesh/client"}, {"mesh/client", "mesh/near"}, {"outside/plain", "mesh/server"}, {"outside/target", "mesh/near"},
	} {
		flows = append(flows, startFlow(openStream(t, m, p[0], p[1], port+i)))
	}
	endAll = sync.OnceFunc(func() {
		for _, f := range flows {
			if err := f.end(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(endAll)
	return endAll
}
