package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// A stream ends with its connection: in order, or reset where the peer does not
// end its side.
func TestConnEndsItsStream(t *testing.T) {
	for name, ends := range map[string]bool{"the peer ends its side": true, "the peer does not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			closed, over := make(chan error, 1), make(chan struct{})
			w := newWorld(t, func(ctx context.Context, s *ServerStream) {
				defer close(over)
				s.Accept()
				terminal := s.Terminate()
				_, _, err := terminal.Read(relay.Small, 0, 1)
				closed <- err
				if ends {
					_ = terminal.CloseWrite()
					return
				}
				<-ctx.Done()
			})
			s, err := w.pool.Open(t.Context(), w.key, Request{Authority: "198.18.2.10:80"})
			must(t, err)
			_, err = s.Answer(t.Context())
			must(t, err)
			c := s.Conn()
			read := make(chan error, 1)
			go func() {
				_, err := c.Read(make([]byte, 1))
				read <- err
			}()
			must(t, c.Close())
			if err := within(t, read); !errors.Is(err, net.ErrClosed) {
				t.Errorf("who reads sees %v", err)
			}
			if err := within(t, closed); !errors.Is(err, io.EOF) {
				t.Errorf("the peer sees %v", err)
			}
			within(t, over)
			eventually(t, func() bool { _, streams := w.pool.Stats(); return streams == 0 })
		})
	}
}
