package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

func TestRefusedIsReplayed(t *testing.T) {
	cases := []struct {
		name      string
		data      int
		fin       bool
		status    int
		retryable bool
	}{
		{"nothing sent", 0, false, 503, true},
		{"some bytes", 1000, false, 503, true},
		{"bytes and FIN", 5000, true, 503, true},
		{"only FIN", 0, true, 503, true},
		{"as much as is kept", keptBytes, false, 503, true},
		{"denied", 1000, false, 401, false},
		{"not understood", 10, true, 400, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			answer := make(chan struct{})
			refusing := newWorld(t, func(ctx context.Context, s *ServerStream) {
				<-answer
				s.Refuse(c.status, Header{"reason", "because"})
			})
			app, near := tcpPair(t)
			app.SetDeadline(time.Now().Add(patience))
			sent := pattern(c.data)
			app.Write(sent)
			if c.fin {
				app.CloseWrite()
			}
			s := refusing.open("10.0.0.1:80")
			go func() {
				eventually(t, func() bool { return s.Counts().Sent.Load() == int64(c.data) })
				if c.fin {
					eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.localEnd })
				}
				close(answer)
			}()
			err := s.Relay(near, nil, ignore)
			var refused *RefusedError
			if !errors.As(err, &refused) {
				t.Fatalf("want a refusal, got %v", err)
			}
			if refused.Status != c.status || refused.Retryable() != c.retryable || value(refused.Headers, "reason") != "because" {
				t.Errorf("refusal %+v, retryable %v", refused, refused.Retryable())
			}
			if string(refused.Replay.Data) != string(sent) {
				t.Fatalf("%d bytes kept of %d, or others", len(refused.Replay.Data), len(sent))
			}
			// The next endpoint gets it all, and the connection goes on.
			next := newWorld(t, forward(application(t, echo)))
			done := make(chan relay.Result, 1)
			go func() {
				if err := next.open("10.0.0.2:80").Relay(near, refused.Replay, send(done)); err != nil {
					t.Error(err)
				}
			}()
			more := []byte("and more")
			if c.fin {
				more = nil
			} else {
				app.Write(more)
				app.CloseWrite()
			}
			got, err := io.ReadAll(app)
			if err != nil || string(got) != string(sent)+string(more) {
				t.Errorf("%d bytes came back of %d: %v", len(got), len(sent)+len(more), err)
			}
			if r := within(t, done); r.End != relay.Finished {
				t.Errorf("result %+v", r)
			}
		})
	}
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 7)
	}
	return p
}

// Before the answer no more is taken from the application than is kept.
func TestReadsNoMoreThanKeptBeforeAnswer(t *testing.T) {
	accept := make(chan struct{})
	target := application(t, echo)
	w := newWorld(t, func(ctx context.Context, s *ServerStream) {
		<-accept
		forward(target)(ctx, s)
	})
	app, done := w.connect("10.0.0.1:80")
	sent := pattern(5 << 20)
	go func() {
		app.Write(sent)
		app.CloseWrite()
	}()
	var s *stream
	eventually(t, func() bool { s = w.onlyStream(); return s != nil })
	eventually(t, func() bool { // it waits for the answer, and for nothing else
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.answer.wanted
	})
	if n := s.counts.Sent.Load(); n != keptBytes {
		t.Errorf("%d bytes sent without an answer, want %d", n, keptBytes)
	}
	close(accept)
	got, err := io.ReadAll(app)
	if err != nil || string(got) != string(sent) {
		t.Errorf("%d bytes came back: %v", len(got), err)
	}
	within(t, done)
}

// onlyStream is the pool's one stream, or nil.
func (w *world) onlyStream() *stream {
	for _, c := range w.pool.matching(func(Key) bool { return true }) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range c.streams {
			return s
		}
	}
	return nil
}

func TestServerSpeaksFirst(t *testing.T) {
	w := newWorld(t, forward(application(t, func(c *net.TCPConn) {
		c.Write([]byte("220 ready"))
		echo(c)
	})))
	app, done := w.connect("10.0.0.1:25")
	app.SetDeadline(time.Now().Add(patience))
	got := make([]byte, 9)
	if _, err := io.ReadFull(app, got); err != nil || string(got) != "220 ready" {
		t.Fatalf("greeting %q, %v", got, err)
	}
	app.Write([]byte("x")) // and wait
	if _, err := io.ReadFull(app, got[:1]); err != nil || got[0] != 'x' {
		t.Fatalf("one byte came back as %q, %v", got[:1], err)
	}
	app.Close()
	within(t, done)
}

func TestAnswerBeforeRelay(t *testing.T) {
	ended := make(chan error, 1)
	w := newWorld(t, func(ctx context.Context, s *ServerStream) {
		s.Accept(Header{"tacit-joined", s.Header("tacit-local")})
		<-s.Done()
		s.End()
		ended <- s.Err()
	})
	s, err := w.pool.Open(t.Context(), w.key, Request{Authority: "10.0.0.1:80", Headers: []Header{{"tacit-local", "token"}}})
	must(t, err)
	answer, err := s.Answer(t.Context())
	if err != nil || answer.Status != 200 || answer.Header("tacit-joined") != "token" {
		t.Fatalf("answer %+v, %v", answer, err)
	}
	select {
	case <-s.Done():
		t.Fatal("done while both sides hold the stream")
	default:
	}
	s.End()
	if err := within(t, ended); err != nil {
		t.Errorf("the server's end: %v", err)
	}
	within(t, s.Done())
	if err := s.Err(); err != nil {
		t.Errorf("the client's end: %v", err)
	}
}

func TestPermitEndsByReset(t *testing.T) {
	permits := make(chan *ServerStream, 1)
	w := newWorld(t, func(ctx context.Context, s *ServerStream) {
		s.Accept()
		permits <- s
		<-s.Done()
	})
	s := w.open("10.0.0.1:80")
	if _, err := s.Answer(t.Context()); err != nil {
		t.Fatal(err)
	}
	within(t, permits).Reset()
	within(t, s.Done())
	if s.Err() == nil {
		t.Error("a revoked permit ended without an error")
	}
}

func TestNoAnswerInTime(t *testing.T) {
	w := newWorld(t, func(ctx context.Context, s *ServerStream) { <-s.Done() },
		worldOptions{client: PoolConfig{AnswerTimeout: 50 * time.Millisecond}})
	for _, data := range []string{"", "data"} {
		app, near := tcpPair(t)
		app.Write([]byte(data))
		err := w.open("10.0.0.1:80").Relay(near, nil, ignore)
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Status != 0 || string(refused.Replay.Data) != data {
			t.Fatalf("want a refusal, got %v", err)
		}
		if refused.Retryable() != (data == "") {
			t.Errorf("%q sent without an answer: retryable %v", data, refused.Retryable())
		}
		near.Close()
	}
}

// A server may say again and again that it is at work, before it answers.
func TestServerIsAtWork(t *testing.T) {
	heard := make(chan struct{}, 3)
	w := newWorld(t, func(ctx context.Context, s *ServerStream) {
		for range cap(heard) {
			s.Working()
			<-heard
		}
		s.Accept()
		s.Working() // is no more of interest
		<-s.Done()
	})
	s, err := w.pool.Open(t.Context(), w.key, Request{Authority: "10.0.0.1:80", Working: func() { heard <- struct{}{} }})
	must(t, err)
	if _, err := s.Answer(t.Context()); err != nil {
		t.Error(err)
	}
	s.Reset()
}

// An application that is gone before the answer needs no other endpoint.
func TestApplicationResetsBeforeAnswer(t *testing.T) {
	w := newWorld(t, func(ctx context.Context, s *ServerStream) { <-s.Done() })
	app, done := w.connect("10.0.0.1:80")
	app.SetLinger(0)
	app.Close()
	if r := within(t, done); r.End != relay.ResetByApp {
		t.Errorf("result %+v", r)
	}
}
