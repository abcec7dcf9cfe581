package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// FuzzServer feeds bytes to a server as a client's frames. Whatever they are,
// it must return when the client leaves, with a cause, and hold a stream's
// bytes within its window.
func FuzzServer(f *testing.F) {
	for _, seed := range seeds() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, frames []byte) {
		near, far := net.Pipe()
		done := make(chan error, 1)
		go func() {
			done <- Serve(t.Context(), far, ServerConfig{}, func(ctx context.Context, s *ServerStream) {
				s.Accept()
				<-s.Done()
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.inbox.held > firstWindow || s.inbox.window < 0 || s.inbox.window > firstWindow {
					t.Errorf("%d bytes held, window %d", s.inbox.held, s.inbox.window)
				}
			})
		}()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			io.Copy(io.Discard, near)
		}()
		near.SetWriteDeadline(time.Now().Add(5 * time.Second))
		near.Write(frames)
		near.Close()
		select {
		case err := <-done:
			if e := (*ConnError)(nil); !errors.As(err, &e) || e.Cause == "" {
				t.Errorf("ended without a cause: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the server goes on without its client")
		}
		<-drained
	})
}

// seeds are beginnings of conversations, good and bad.
func seeds() [][]byte {
	var all [][]byte
	add := func(write func(*attacker)) {
		var b bytes.Buffer
		b.WriteString(http2.ClientPreface)
		a := &attacker{Framer: http2.NewFramer(&b, nil)}
		a.AllowIllegalWrites = true
		a.encoder = hpack.NewEncoder(&a.block)
		a.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 14})
		write(a)
		all = append(all, b.Bytes())
	}
	add(func(a *attacker) { a.connect(1); a.WriteData(1, false, []byte("data")); a.WriteData(1, true, nil) })
	add(func(a *attacker) { a.connect(1, "baggage", "x=y"); a.WriteRSTStream(1, http2.ErrCodeCancel) })
	add(func(a *attacker) { a.connect(1); a.WriteDataPadded(1, false, []byte("data"), make([]byte, 9)) })
	add(func(a *attacker) { a.connect(1); a.WriteWindowUpdate(1, 1<<31-1); a.connect(3); a.connect(3) })
	add(func(a *attacker) { a.WritePing(false, [8]byte{}); a.WriteSettingsAck(); a.WriteGoAway(0, 0, nil) })
	add(func(a *attacker) {
		block := a.headers(":method", "CONNECT", ":authority", "x")
		a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:1]})
		a.WriteContinuation(1, true, block[1:])
	})
	return append(all, []byte(http2.ClientPreface), []byte("GET / HTTP/1.1\r\n\r\n"), nil)
}
