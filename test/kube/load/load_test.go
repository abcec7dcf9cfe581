package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a loopback address that nothing else listens on.
const host = "127.77.0.1"

// broken are servers that do not quite send back what they get, and what a
// client says of them.
var broken = []struct {
	name   string
	serve  func(net.Conn)
	reason string
}{
	{"flips a bit", func(c net.Conn) {
		data, _ := io.ReadAll(c)
		data[len(data)-1] ^= 1
		_, _ = c.Write(data)
	}, "came back"},
	{"forgets a byte", func(c net.Conn) {
		data, _ := io.ReadAll(c)
		_, _ = c.Write(data[1:])
	}, "came back"},
	{"adds a byte", func(c net.Conn) {
		data, _ := io.ReadAll(c)
		_, _ = c.Write(append(data, 'x'))
	}, "came back"},
	{"resets", func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }, "reset"},
}

func listen(t *testing.T, serve func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("tcp", host+":7000")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
}

// What the tests of a cluster conclude from "no failure" rests on this.
func TestExchangeNoticesEverything(t *testing.T) {
	for _, tt := range broken {
		t.Run(tt.name, func(t *testing.T) {
			listen(t, tt.serve)
			err := Client{Host: host}.Exchange(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.reason) {
				t.Errorf("error %v, want one with %q", err, tt.reason)
			}
		})
	}
	for _, finLast := range []bool{false, true} {
		t.Run(fmt.Sprintf("sends back what it gets, FIN last: %v", finLast), func(t *testing.T) {
			listen(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
			if err := (Client{Host: host, FINLast: finLast}).Exchange(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("adds a byte before FIN", func(t *testing.T) {
		listen(t, func(c net.Conn) {
			_, _ = io.Copy(c, c)
			_, _ = c.Write([]byte("x"))
		})
		err := Client{Host: host, FINLast: true}.Exchange(t.Context())
		if err == nil || !strings.Contains(err.Error(), "came back") {
			t.Errorf("error %v, want one with what came back", err)
		}
	})
}

// A stream counts what it has had, and one that is cut is counted once and
// made anew.
func TestStreams(t *testing.T) {
	listen(t, func(c net.Conn) {
		buffer := make([]byte, 2*mostBytes) // cut after about as much
		for sent := 0; sent < len(buffer); {
			n, err := c.Read(buffer)
			if err != nil {
				return
			}
			_, _ = c.Write(buffer[:n])
			sent += n
		}
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r := &recorder{}
	ended := make(chan error, 1)
	go func() { ended <- Client{Host: host, Pause: time.Millisecond}.keep(ctx, r) }()
	for r.count().Failed < 3 || r.count().Done < 3 {
		select {
		case err := <-ended:
			t.Fatalf("ended with %v and counts %+v", err, r.count())
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if errs := strings.Join(r.count().Errors, "\n"); !strings.Contains(errs, "stream cut") {
		t.Errorf("errors %q", errs)
	}
}

func (r *recorder) count() Count {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.report.Streams
}

func TestMessagesDiffer(t *testing.T) {
	a, b := message(), message()
	if bytes.Equal(a, b) || len(a) == 0 || len(a) > mostBytes {
		t.Errorf("messages of %d and %d bytes, alike: %v", len(a), len(b), bytes.Equal(a, b))
	}
}
