// Package load is the traffic of the tests' pods: servers that send back what
// they get, and clients that count what came back otherwise.
//
// A client counts three things: exchanges, each a connection of its own;
// streams, which live as long as the client does; and requests over HTTP/1.1
// with keep-alive. What does not belong here: anything of Kubernetes or Tacit.
package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// Ports of every server.
const (
	// EchoPort takes connections and sends back what arrives, FIN after FIN.
	EchoPort = 7000
	// HTTPPort answers requests: with the request's body to a POST, else with
	// who asks and who answers.
	HTTPPort = 8080
	// HealthPort has gRPC's health service.
	HealthPort = 9000
)

// ReportURL is where a client's [Report] is, for programs in the same pod.
const ReportURL = "http://" + reportAddress + "/"

// TakenURL is where a server says, to programs in the same pod, how many
// connections [EchoPort] has taken.
const TakenURL = "http://127.0.0.1:8080" + takenPath

const takenPath = "/taken"

const reportAddress = "127.0.0.1:7999"

// Count is how one kind of traffic went.
type Count struct {
	Done   int64
	Failed int64
	// Slowest is how long the slowest took that was done.
	Slowest time.Duration
	// Errors are the first failures.
	Errors []string
}

// Report is what a client has seen since it began.
type Report struct {
	Exchanges, Streams, Requests Count
	// Servers are the hosts that answered requests, and how often.
	Servers map[string]int64
}

// mostErrors bounds what a report remembers.
const mostErrors = 10

// recorder is a report under construction.
type recorder struct {
	mu     sync.Mutex
	report Report
}

func (r *recorder) record(count func(*Report) *Count, begin time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := count(&r.report)
	if err == nil {
		c.Done++
		c.Slowest = max(c.Slowest, time.Since(begin))
		return
	}
	c.Failed++
	if len(c.Errors) < mostErrors {
		c.Errors = append(c.Errors, fmt.Sprintf("%s: %v", time.Now().UTC().Format("15:04:05.000"), err))
	}
}

func (r *recorder) served(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.report.Servers == nil {
		r.report.Servers = map[string]int64{}
	}
	r.report.Servers[host]++
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = json.NewEncoder(w).Encode(r.report) // who does not listen gets nothing
}

// serveHTTP runs a server until the context ends, and gives requests in
// progress a moment then.
func serveHTTP(ctx context.Context, l net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(grace)
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}
