package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

func never() error { return nil }

// terminalEcho sends back what it reads, and ends its side behind it.
func terminalEcho(_ context.Context, s *ServerStream) {
	s.Accept()
	t := s.Terminate()
	for {
		buf, n, err := t.Read(relay.Large, Headroom, relay.LargeSize)
		if err != nil {
			if errors.Is(err, io.EOF) {
				_ = t.CloseWrite()
				<-s.Done()
			}
			return
		}
		err = t.Send(buf.B[:Headroom+n], Headroom, never)
		buf.Free()
		if err != nil {
			return
		}
	}
}

// Bytes that end in this process arrive whole, many windows of them, and the
// end of each side is an orderly one.
func TestTerminalEchoes(t *testing.T) {
	w := newWorld(t, terminalEcho)
	app, ended := w.connect("198.18.2.10:80")
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<19)
	go func() {
		_, _ = app.Write(sent)
		_ = app.CloseWrite()
	}()
	got, err := io.ReadAll(app)
	must(t, err)
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back, not those %d that were sent", len(got), len(sent))
	}
	if r := within(t, ended); r.End != relay.Finished {
		t.Errorf("the stream ended as %v: %v", r.End, r.Err)
	}
}

// A reset wakes whoever reads or waits for window, and says so.
func TestTerminalIsReset(t *testing.T) {
	failed := make(chan error, 2)
	w := newWorld(t, func(_ context.Context, s *ServerStream) {
		s.Accept()
		terminal := s.Terminate()
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _, err := terminal.Read(relay.Small, 0, 1)
			failed <- err
		}()
		data := make([]byte, relay.LargeSize)
		for {
			if err := terminal.Send(data, Headroom, never); err != nil {
				failed <- err
				break
			}
		}
		<-read
	})
	app, ended := w.connect("198.18.2.10:80")
	_, err := io.ReadFull(app, make([]byte, 1)) // the server has begun
	must(t, err)
	must(t, app.SetLinger(0))
	must(t, app.Close())
	for range 2 {
		if err := within(t, failed); err == nil {
			t.Error("a read or send behind a reset succeeded")
		}
	}
	within(t, ended)
}

// A stalled send asks whether it should go on.
func TestTerminalStalls(t *testing.T) {
	gone := errors.New("the other side is gone")
	failed := make(chan error, 1)
	w := newWorld(t, func(_ context.Context, s *ServerStream) {
		s.Accept()
		terminal := s.Terminate()
		data := make([]byte, relay.LargeSize)
		for {
			if err := terminal.Send(data, Headroom, func() error { return gone }); err != nil {
				failed <- err
				return
			}
		}
	})
	app, ended := w.connect("198.18.2.10:80")
	if err := within(t, failed); !errors.Is(err, gone) {
		t.Errorf("the stalled send ended with %v", err)
	}
	_, _ = io.Copy(io.Discard, app)
	within(t, ended)
}
