package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// roundTrips sends and awaits its own bytes, over and over.
func roundTrips(ctx context.Context, c *client) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	buf := make([]byte, c.Size)
	for now := time.Now(); now.Before(c.end); {
		if err := c.roundTrip(conn, buf); err != nil {
			return err
		}
		after := time.Now()
		c.times = append(c.times, after.Sub(now))
		now = after
	}
	return nil
}

func (c *client) roundTrip(conn net.Conn, buf []byte) error {
	if _, err := conn.Write(buf); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, buf)
	c.done.Bytes += uint64(2 * len(buf))
	return err
}

// onSchedule makes round trips when they are due. A late answer makes the
// next one late, which its own latency then says: the load does not go easy
// on what is slow.
func onSchedule(ctx context.Context, c *client) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	// Go's timers are exact to a millisecond, a thread's own sleep to some
	// microseconds.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf := make([]byte, c.Size)
	for due, every := c.schedule(); due.Before(c.end); due = due.Add(every) {
		sleepUntil(due)
		if err := c.roundTrip(conn, buf); err != nil {
			return err
		}
		c.times = append(c.times, time.Since(due))
	}
	return nil
}

// schedule is when this connection's first round trip is due, and how much later
// each further one.
func (c *client) schedule() (first time.Time, every time.Duration) {
	every = time.Duration(c.Conns) * time.Second / time.Duration(c.Rate)
	return c.start.Add(time.Duration(c.number) * every / time.Duration(c.Conns)), every
}

func sleepUntil(due time.Time) {
	if wait := time.Until(due); wait > 0 {
		ts := unix.NsecToTimespec(int64(wait))
		_ = unix.Nanosleep(&ts, nil) // a signal only makes it early
	}
}

// connect opens a connection, makes one small round trip and closes it, over
// and over; at a rate, when it is due.
func connect(ctx context.Context, c *client) error {
	if c.Rate == 0 {
		for now := time.Now(); now.Before(c.end); now = time.Now() {
			if err := c.connectOnce(ctx, now); err != nil {
				return err
			}
		}
		return nil
	}
	for due, every := c.schedule(); due.Before(c.end) && time.Now().Before(c.end); due = due.Add(every) {
		sleepUntil(due)
		if err := c.connectOnce(ctx, due); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) connectOnce(ctx context.Context, due time.Time) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(c.roundTrip(conn, make([]byte, 64)), conn.Close()); err != nil {
		return err
	}
	c.times = append(c.times, time.Since(due))
	return nil
}

// get asks for the same page, over and over, on one connection.
func get(ctx context.Context, c *client) error {
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithDeadline(ctx, c.end.Add(patience))
	defer cancel()
	for now := time.Now(); now.Before(c.end); {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Address+"/", nil)
		if err != nil {
			return err
		}
		n, err := c.answer(transport.RoundTrip(request))
		if err != nil {
			return err
		}
		c.done.Bytes += uint64(n)
		after := time.Now()
		c.times = append(c.times, after.Sub(now))
		now = after
	}
	return nil
}

func (c *client) answer(response *http.Response, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return 0, err
	}
	if response.StatusCode != http.StatusOK || n != pageSize {
		return 0, fmt.Errorf("answer %s of %d bytes", response.Status, n)
	}
	return n, nil
}

// Hold opens connections, uses each once, calls ready, and keeps them until
// the context ends.
func Hold(ctx context.Context, address string, n int, ready func()) error {
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	c := &client{Config: Config{Address: address}, end: time.Now()}
	for range n {
		conn, err := c.dial(ctx)
		if err != nil {
			return err
		}
		conns = append(conns, conn)
		if err := errors.Join(c.roundTrip(conn, make([]byte, 1)), conn.SetDeadline(time.Time{})); err != nil {
			return err
		}
	}
	ready()
	<-ctx.Done()
	return nil
}
