package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

var errEnough = errors.New("enough")

// A meter that has had enough resets the stream, to a buffer, whichever way and
// however the bytes go.
func TestMeter(t *testing.T) {
	const enough = 300_000
	pour := func(c *net.TCPConn) {
		for err := error(nil); err == nil; {
			_, err = c.Write(make([]byte, 100_000))
		}
	}
	swallow := func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }
	for name, test := range map[string]struct {
		app      func(*net.TCPConn) // at the server's side; nil: its bytes end there
		outgoing bool               // from there
	}{
		"to an application": {swallow, false},
		"to one that reads now and then": {func(c *net.TCPConn) {
			_ = c.SetReadBuffer(4 << 10)
			pace := time.NewTicker(time.Millisecond)
			defer pace.Stop()
			for err := error(nil); err == nil; <-pace.C {
				_, err = c.Read(make([]byte, 10_000))
			}
		}, false},
		"from an application": {pour, true},
		"to this process":     {nil, false},
		"from this process":   {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			var target net.Addr
			if test.app != nil {
				target = application(t, test.app)
			}
			var passed atomic.Int64
			failed := make(chan relay.Result, 1)
			w := newWorld(t, func(_ context.Context, s *ServerStream) {
				s.Counts().Tell(func(n int) error {
					if passed.Add(int64(n)) >= enough {
						return errEnough
					}
					return nil
				})
				if test.app == nil {
					failed <- relay.Result{End: relay.Aborted, Err: terminate(s, test.outgoing)}
					return
				}
				far, err := net.Dial("tcp", target.String())
				if err != nil {
					s.Refuse(503)
					return
				}
				_ = far.(*net.TCPConn).SetWriteBuffer(8 << 10)
				s.Accept()
				s.Relay(far.(*net.TCPConn), func(r relay.Result) { failed <- r })
			})
			app, done := w.connect("198.18.2.10:80")
			if test.outgoing {
				if _, err := io.Copy(io.Discard, app); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the receiver saw %v", err)
				}
			} else {
				go pour(app)
			}
			if r := within(t, failed); r.End != relay.Aborted || !errors.Is(r.Err, errEnough) {
				t.Errorf("ended with %+v", r)
			}
			if r := within(t, done); r.End != relay.ResetByPeer {
				t.Errorf("at the client's side: %+v", r)
			}
			if n := passed.Load(); n < enough || n > enough+relay.LargeSize {
				t.Errorf("%d bytes passed", n)
			}
		})
	}
}

// terminate reads or sends without end.
func terminate(s *ServerStream, send bool) error {
	s.Accept()
	t := s.Terminate()
	for {
		if send {
			if err := t.Send(make([]byte, Headroom+10_000), Headroom, never); err != nil {
				return err
			}
			continue
		}
		buf, _, err := t.Read(relay.Large, Headroom, relay.LargeSize)
		if err != nil {
			return err
		}
		buf.Free()
	}
}
