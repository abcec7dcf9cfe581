package load

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T, serve func(net.Listener) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- serve(l) }()
	t.Cleanup(func() {
		_ = l.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestKinds(t *testing.T) {
	echoing, sinking, streaming, paging := listen(t, each(echo)), listen(t, each(sink)), listen(t, each(stream)), listen(t, pages)
	calling, answering := listen(t, calls), listen(t, each(answers))
	lying := listen(t, each(func(c *net.TCPConn) error {
		_, err := c.Write(make([]byte, 8)) // "I got nothing"
		_, _ = drain(c)
		return err
	}))
	short := listen(t, each(func(c *net.TCPConn) error {
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
		_, _ = io.Copy(io.Discard, c)
		return err
	}))
	for _, c := range []struct {
		name, kind, address string
		want                string // of the error
		times               bool
		rate                int
	}{
		{"round trips", Echo, echoing, "", true, 0},
		{"a fixed rate", Rate, echoing, "", true, 300},
		{"connections", Connect, echoing, "", true, 0},
		{"connections at a fixed rate", Connect, echoing, "", true, 100},
		{"requests", HTTP, paging, "", true, 0},
		{"calls", GRPC, calling, "", true, 0},
		{"exchanges", Frames, answering, "", true, 0},
		{"to the server", Up, sinking, "", false, 0},
		{"from the server", Down, streaming, "", false, 0},
		{"both ways", Both, streaming, "", false, 0},
		{"bytes that never arrived", Up, lying, "the server got 0 of", false, 0},
		{"another page", HTTP, short, "answer 200 OK of 1 bytes", false, 0},
		{"calls of what is no gRPC", GRPC, paging, "unexpected content-type", false, 0},
		{"nobody there", Echo, "127.0.0.1:1", "refused", false, 0},
		{"exchanges with what answers otherwise", Frames, paging, "an answer of 1024 bytes, not 100", false, 0},
		{"exchanges with what is no HTTP/2", Frames, echoing, "frame too large", false, 0},
		{"no such kind", "ping", echoing, "it is one of [both cold connect down echo frames grpc http rate up]", false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			const n, long = 3, 500 * time.Millisecond
			r, err := Run(t.Context(), Config{Kind: c.kind, Address: c.address, Conns: n, Size: 100, Rate: c.rate, Time: long})
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.rate > 0 && r.Requests > int(float64(c.rate)*long.Seconds()) {
				t.Errorf("%d requests at a rate of %d a second", r.Requests, c.rate)
			}
			inOrder := r.P50 > 0 && r.P50 <= r.P90 && r.P90 <= r.P99 && r.P99 <= r.P999 && r.P999 <= r.Max
			if c.times && (r.Requests < n || !inOrder) || r.Bytes == 0 || !c.times && r.Elapsed < long {
				t.Errorf("result %+v", r)
			}
		})
	}
}

// At a fixed rate as many are asked for as are due, and what is late is late
// from when it was due.
func TestFixedRate(t *testing.T) {
	const pause = 200 * time.Millisecond
	slowly := listen(t, each(func(c *net.TCPConn) error {
		if _, err := io.CopyN(io.Discard, c, 8); err != nil {
			return err
		}
		<-time.After(pause) // the first answer only; the others wait behind it
		if _, err := c.Write(make([]byte, 8)); err != nil {
			return err
		}
		return echo(c)
	}))
	r, err := Run(t.Context(), Config{Kind: Rate, Address: slowly, Conns: 1, Size: 8, Rate: 100, Time: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	// Those due in the first 100 ms were at least 100 ms late.
	if r.Requests != 100 || r.P90 < pause/2-20*time.Millisecond || r.Max < pause {
		t.Errorf("result %+v, want 100 requests, a tenth of them late", r)
	}
}

func TestServeAndHold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	at := make(chan string, 1)
	served := make(chan error, 1)
	go func() {
		served <- serve(ctx, func(port uint16) (net.Listener, error) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil && port == EchoPort {
				at <- l.Addr().String()
			}
			return l, err
		})
	}()
	address, ready, held := <-at, make(chan struct{}), make(chan error, 1)
	go func() { held <- Hold(ctx, address, 3, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-held:
		t.Fatal(err)
	}
	cancel()
	if err := errors.Join(<-held, <-served); err != nil {
		t.Error(err)
	}
	taken := errors.New("taken")
	err := serve(t.Context(), func(uint16) (net.Listener, error) { return nil, taken })
	if !errors.Is(err, taken) {
		t.Errorf("without a port: %v", err)
	}
}

func TestReceiveTellsTheEnd(t *testing.T) {
	for _, extra := range []int{0, 1, 300_000} {
		client, server := net.Pipe()
		go func() {
			_, _ = server.Write(make([]byte, extra))
			_ = binary.Write(server, binary.BigEndian, uint64(42))
			_ = server.Close()
		}()
		if received, got, err := receive(client); received != uint64(extra) || got != 42 || err != nil {
			t.Errorf("%d bytes: received %d, the server got %d, %v", extra, received, got, err)
		}
	}
}
