package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// result is what one load found, as JSON on its standard output.
type result struct {
	Requests int           `json:"requests"` // round trips or connections
	Bytes    uint64        `json:"bytes"`
	Elapsed  time.Duration `json:"elapsed"`
	P50      time.Duration `json:"p50"` // of single requests
	P99      time.Duration `json:"p99"`
}

// work is what one of the load's connections does until the end.
type work func(address string, size int, end time.Time) (result, []time.Duration, error)

// load is the load's client.
func load(args []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	to := flags.String("to", "", "address of the server")
	kind := flags.String("kind", "echo", "echo, bulk, connect or idle")
	conns := flags.Int("conns", 1, "connections at a time")
	size := flags.Int("size", 1024, "bytes of a request, or of a write")
	duration := flags.Duration("time", time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *kind == "idle" {
		return holdIdle(*to, *conns)
	}
	do := map[string]work{"echo": roundTrips, "bulk": upload, "connect": connect}[*kind]
	if do == nil {
		return fmt.Errorf("unknown kind of load %q", *kind)
	}
	total, err := together(*conns, func() (result, []time.Duration, error) {
		return do(*to, *size, time.Now().Add(*duration))
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(total)
}

// together runs several at the same time and adds up.
func together(n int, do func() (result, []time.Duration, error)) (result, error) {
	var (
		mu    sync.Mutex
		group sync.WaitGroup
		total result
		times []time.Duration
		errs  error
	)
	began := time.Now()
	for range n {
		group.Go(func() {
			r, took, err := do()
			mu.Lock()
			defer mu.Unlock()
			total.Requests += r.Requests
			total.Bytes += r.Bytes
			times = append(times, took...)
			errs = errors.Join(errs, err)
		})
	}
	group.Wait()
	total.Elapsed = time.Since(began)
	if slices.Sort(times); len(times) > 0 {
		total.P50, total.P99 = times[len(times)/2], times[len(times)*99/100]
	}
	return total, errs
}

// roundTrips sends and awaits its own bytes, over and over.
func roundTrips(address string, size int, end time.Time) (r result, times []time.Duration, err error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return r, nil, err
	}
	defer func() { _ = c.Close() }()
	buf := make([]byte, size)
	for now := time.Now(); now.Before(end); {
		if err := roundTrip(c, buf); err != nil {
			return r, nil, err
		}
		after := time.Now()
		times = append(times, after.Sub(now))
		now = after
	}
	r.Requests, r.Bytes = len(times), uint64(2*size*len(times))
	return r, times, nil
}

func roundTrip(c net.Conn, buf []byte) error {
	if _, err := c.Write(buf); err != nil {
		return err
	}
	_, err := io.ReadFull(c, buf)
	return err
}

// upload writes until the end and has the server count: what only filled
// buffers on the way does not count early.
func upload(address string, size int, end time.Time) (r result, _ []time.Duration, err error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return r, nil, err
	}
	defer func() { _ = c.Close() }()
	buf := make([]byte, size)
	for time.Now().Before(end) {
		n, err := c.Write(buf)
		r.Bytes += uint64(n)
		if err != nil {
			return r, nil, err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return r, nil, err
	}
	var counted uint64
	if err := binary.Read(c, binary.BigEndian, &counted); err != nil {
		return r, nil, err
	}
	if counted != r.Bytes {
		return r, nil, fmt.Errorf("the server got %d of %d bytes", counted, r.Bytes)
	}
	return r, nil, nil
}

// connect opens a connection, makes one small round trip and closes it.
func connect(address string, _ int, end time.Time) (r result, times []time.Duration, err error) {
	for now := time.Now(); now.Before(end); {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return r, nil, err
		}
		err = errors.Join(roundTrip(c, make([]byte, 1)), c.Close())
		if err != nil {
			return r, nil, err
		}
		after := time.Now()
		times = append(times, after.Sub(now))
		now = after
	}
	r.Requests = len(times)
	return r, times, nil
}

// holdIdle opens connections, uses each once, says so, and keeps them until
// its standard input ends.
func holdIdle(address string, n int) error {
	for range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := roundTrip(c, make([]byte, 1)); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(os.Stdout, "ready"); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
