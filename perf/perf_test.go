package main

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func listen(t *testing.T, handle func(net.Conn) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- accept(l, handle) }()
	t.Cleanup(func() {
		_ = l.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestLoads(t *testing.T) {
	echoing, sinking := listen(t, echo), listen(t, sink)
	lying := listen(t, func(c net.Conn) error {
		_, err := c.Write(make([]byte, 8)) // "I got nothing"
		_, _ = io.Copy(io.Discard, c)
		return err
	})
	for _, c := range []struct {
		name, address string
		do            work
		want          string // of the error
		times         bool
	}{
		{"round trips", echoing, roundTrips, "", true},
		{"connections", echoing, connect, "", true},
		{"bulk", sinking, upload, "", false},
		{"bytes that never arrived", lying, upload, "the server got 0 of", false},
		{"nobody there", "127.0.0.1:1", roundTrips, "refused", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			const n, long = 3, 500 * time.Millisecond
			r, err := together(n, func() (result, []time.Duration, error) {
				return c.do(c.address, 100, time.Now().Add(long))
			})
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.times && (r.Requests < n || r.P50 <= 0 || r.P99 < r.P50) || !c.times && r.Bytes == 0 || r.Elapsed < long {
				t.Errorf("result %+v", r)
			}
		})
	}
}

func TestReport(t *testing.T) {
	r := newReport(config{rounds: 3}, []*path{{name: pathDirect}, {name: pathTacit}, {name: pathHAProxy}})
	latency, rate := metric{Name: "latency", Unit: "µs"}, metric{Name: "rate", Unit: "/s", HigherBetter: true}
	for _, v := range []float64{30, 10, 20} {
		r.note(latency, pathTacit, v)
		r.note(latency, pathHAProxy, 3*v)
		r.note(rate, pathTacit, v)
	}
	r.note(rate, pathHAProxy, 10)
	r.note(rate, pathHAProxy, 70)
	for _, c := range []struct {
		name, path, than, want string
		row                    int
	}{
		{"lower is better", pathTacit, pathHAProxy, "3.00 ×", 0},
		{"higher is better, even number of samples", pathTacit, pathHAProxy, "0.50 ×", 1},
		{"nothing to compare with", pathTacit, pathDirect, "-", 0},
	} {
		if got := r.Rows[c.row].ratio(c.path, c.than); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	var b strings.Builder
	r.print(&b)
	if !strings.Contains(b.String(), "latency") || len(r.Rows) != 2 {
		t.Errorf("report:\n%s", &b)
	}
}

func TestProcesses(t *testing.T) {
	own := []int{os.Getpid()}
	before, err := processorTime(own)
	if err != nil {
		t.Fatal(err)
	}
	after := before
	for began := time.Now(); after <= before && time.Since(began) < time.Minute; { // to ask is work, too
		if after, err = processorTime(own); err != nil {
			t.Fatal(err)
		}
	}
	if after <= before {
		t.Errorf("processor time stays at %v", before)
	}
	if bytes, err := residentMemory(own); err != nil || bytes < 1<<20 || bytes > 1<<33 {
		t.Errorf("resident: %d bytes (%v)", bytes, err)
	}
	if _, err := processorTime([]int{0}); err == nil {
		t.Error("a process that is not there has processor time")
	}
}
