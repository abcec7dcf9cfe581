// Package load is the load that the mesh's cost is measured with, and its
// server: what perf runs between two nodes of one machine, and tacit bench
// between two of a cluster.
//
// What does not belong here: what is compared with what (perf).
package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// Kinds of load.
const (
	Echo    = "echo"    // round trips, one after the other on each connection
	Rate    = "rate"    // round trips at a fixed rate, due whether or not earlier ones are back
	Up      = "up"      // bytes to the server
	Down    = "down"    // bytes from the server
	Both    = "both"    // both at once
	Connect = "connect" // new connections with one small round trip each
	Cold    = "cold"    // new connections one after the other, for each of which proxies have to make one of their own
	HTTP    = "http"    // HTTP/1.1 GET of 1 KB with keep-alive
	GRPC    = "grpc"    // unary calls of gRPC, one after the other on each connection
	Frames  = "frames"  // exchanges of HTTP/2 like those calls, the frames of which each side sends with one write
	Idle    = "idle"    // connections that are held, see [Hold] and [Command]
)

// Config is one load.
type Config struct {
	Kind    string
	Address string // of the server's port for this kind, see [Port]
	Conns   int    // connections at a time
	Size    int    // bytes of a round trip's either way, or of a write
	Rate    int    // round trips a second of all connections together
	Time    time.Duration
}

// Result is what a load found. Latencies are those of single round trips or
// connections; at a fixed rate, from when they were due.
type Result struct {
	Requests int           `json:"requests"` // round trips or connections
	Bytes    uint64        `json:"bytes"`    // that have arrived, both ways
	Elapsed  time.Duration `json:"elapsed"`
	P50      time.Duration `json:"p50"`
	P90      time.Duration `json:"p90"`
	P99      time.Duration `json:"p99"`
	P999     time.Duration `json:"p999"`
	Max      time.Duration `json:"max"`
}

// client is one connection's part of a load, from its beginning to its end.
type client struct {
	Config
	number int // of the connection
	start  time.Time
	end    time.Time
	done   Result
	times  []time.Duration
}

var kinds = map[string]func(context.Context, *client) error{
	Echo: roundTrips, Rate: onSchedule, Up: bulk, Down: bulk, Both: bulk, Connect: connect, Cold: cold, HTTP: get, GRPC: call, Frames: exchanges,
}

// Kinds are the names of all kinds.
func Kinds() []string {
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Known says whether there is such a kind of load here.
func Known(kind string) bool { return kinds[kind] != nil }

// Run puts the load on and returns what it found. One failed request fails
// the whole: a figure of a load that was refused would mislead.
func Run(ctx context.Context, c Config) (Result, error) {
	do := kinds[c.Kind]
	if !Known(c.Kind) {
		return Result{}, fmt.Errorf("unknown kind of load %q: it is one of %v", c.Kind, Kinds())
	}
	var group sync.WaitGroup
	clients, errs := make([]*client, c.Conns), make([]error, c.Conns)
	start := time.Now()
	for i := range clients {
		clients[i] = &client{Config: c, number: i, start: start, end: start.Add(c.Time)}
		group.Go(func() { errs[i] = do(ctx, clients[i]) })
	}
	group.Wait()
	return sum(clients, time.Since(start)), errors.Join(errs...)
}

func sum(clients []*client, elapsed time.Duration) Result {
	total := Result{Elapsed: elapsed}
	var times []time.Duration
	for _, c := range clients {
		times = append(times, c.times...)
		total.Bytes += c.done.Bytes
	}
	total.Requests = len(times)
	if len(times) == 0 {
		return total
	}
	slices.Sort(times)
	at := func(share float64) time.Duration { return times[min(len(times)-1, int(share*float64(len(times))))] }
	total.P50, total.P90, total.P99, total.P999, total.Max = at(0.5), at(0.9), at(0.99), at(0.999), times[len(times)-1]
	return total
}

// dial gives up with the context, and at a time at which the load would long
// be over.
func (c *client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.Address)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(c.end.Add(patience))
}

// patience is how much longer than asked for a load may take: a connection
// that answers nothing must not hang it.
const patience = 30 * time.Second
