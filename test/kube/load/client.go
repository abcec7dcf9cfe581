package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

// timeout bounds an exchange, a request, and each step of a stream.
const timeout = 15 * time.Second

// mostBytes is the size of the largest message.
const mostBytes = 64 << 10

// Client says what a client does, all of it at once, until the context ends.
type Client struct {
	Host      string // of a server
	Exchanges int    // workers that exchange a message on a connection of its own, again and again
	Streams   int    // connections that live on
	Requests  int    // workers that make HTTP requests on kept connections
	Pause     time.Duration
	FINLast   bool // exchanges end their half once the message is back, not with it, and begin it with inClear
}

// inClear is no beginning of TLS to a server that looks whether there is any: of
// random bytes it would wait for the rest of a record where the second is that
// of TLS's version, and where there are fewer than five.
const inClear = "clear"

// Run runs the client and serves its report.
func (c Client) Run(ctx context.Context) error {
	l, err := net.Listen("tcp", reportAddress)
	if err != nil {
		return err
	}
	r := &recorder{}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveHTTP(ctx, l, r) })
	for range c.Exchanges {
		group.Go(func() error {
			return c.repeat(ctx, r, func(r *Report) *Count { return &r.Exchanges }, func() error { return c.Exchange(ctx) })
		})
	}
	for range c.Streams {
		group.Go(func() error { return c.keep(ctx, r) })
	}
	web := &http.Client{Timeout: timeout}
	for range c.Requests {
		group.Go(func() error {
			return c.repeat(ctx, r, func(r *Report) *Count { return &r.Requests }, func() error { return c.request(ctx, web, r) })
		})
	}
	return group.Wait()
}

// repeat runs step until the context ends; again soon where it has failed.
func (c Client) repeat(ctx context.Context, r *recorder, count func(*Report) *Count, step func() error) error {
	tick := time.NewTicker(c.Pause)
	defer tick.Stop()
	for {
		begin := time.Now()
		err := step()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.record(count, begin, err)
		var again <-chan time.Time
		if err != nil {
			again = time.After(time.Second)
		}
		select {
		case <-tick.C:
		case <-again:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c Client) dial(ctx context.Context) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(c.Host, strconv.Itoa(EchoPort)))
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// message is of a random size and content.
func message() []byte {
	data := make([]byte, 1+rand.IntN(mostBytes))
	source := rand.NewChaCha8([32]byte{byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32())})
	_, _ = source.Read(data) // documented never to fail
	return data
}

// Exchange sends a message, on a connection of its own, and expects the same
// back, and nothing more. FIN goes with the message, or last.
func (c Client) Exchange(ctx context.Context) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(timeout))
	sent := message()
	if c.FINLast {
		sent = append([]byte(inClear), sent...)
	}
	group, _ := errgroup.WithContext(ctx)
	group.Go(func() error {
		if _, err := conn.Write(sent); err != nil || c.FINLast {
			return err
		}
		return conn.CloseWrite()
	})
	var got []byte
	if c.FINLast {
		got, err = io.ReadAll(io.LimitReader(conn, int64(len(sent))))
		err = errors.Join(err, conn.CloseWrite())
	}
	rest, restErr := io.ReadAll(io.LimitReader(conn, int64(len(sent))+1))
	if err := errors.Join(err, restErr, group.Wait()); err != nil {
		return err
	}
	return same(sent, append(got, rest...))
}

func same(sent, got []byte) error {
	if bytes.Equal(sent, got) {
		return nil
	}
	return fmt.Errorf("%d bytes came back for %d, the first %d alike", len(got), len(sent), commonPrefix(sent, got))
}

func commonPrefix(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// keep exchanges messages on one connection, and makes another when that is
// cut.
func (c Client) keep(ctx context.Context, r *recorder) error {
	count := func(r *Report) *Count { return &r.Streams }
	var conn *net.TCPConn
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	return c.repeat(ctx, r, count, func() error {
		if conn == nil {
			var err error
			if conn, err = c.dial(ctx); err != nil {
				return err
			}
		}
		if err := onward(conn); err != nil {
			_ = conn.Close()
			conn = nil
			return err
		}
		return nil
	})
}

// onward exchanges one more message on a connection that goes on.
func onward(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(timeout))
	sent := message()
	var group errgroup.Group
	group.Go(func() error {
		_, err := conn.Write(sent)
		return err
	})
	got := make([]byte, len(sent))
	_, err := io.ReadFull(conn, got)
	if err := errors.Join(err, group.Wait()); err != nil {
		return fmt.Errorf("stream cut: %w", err)
	}
	return same(sent, got)
}

func (c Client) request(ctx context.Context, client *http.Client, r *recorder) error {
	sent := message()
	address := "http://" + net.JoinHostPort(c.Host, strconv.Itoa(HTTPPort)) + "/"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(sent))
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, got)
	}
	r.served(response.Header.Get("Server"))
	return same(sent, got)
}
