// Package admin answers questions about a running proxy, as JSON over HTTP on
// a Unix socket that only the proxy's own user and root can open.
//
// It reads and never changes anything. What does not belong here: metrics and
// logs (proxy/telemetry), and how answers are shown to people (cmd/tacit).
package admin

import (
	"context"
	"io"
	"iter"
	"log"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"golang.org/x/net/netutil"

	"github.com/tacit-mesh/tacit/internal/httpserve"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/model"
)

// DefaultPath is where the proxy's socket is unless it is told otherwise.
const DefaultPath = "/run/tacit/admin.sock"

// Bounds: a person or two with a terminal, not a service.
const (
	maxClients    = 16
	maxHeader     = 16 << 10
	readTimeout   = 5 * time.Second
	answerTimeout = 2 * time.Minute // a profile takes as long as it is asked to
)

// Server answers on the socket at Path. Its functions are called from many
// goroutines; those that are nil have nothing to say.
type Server struct {
	Path string
	Node string
	// Network is that of the node, where the mesh has several; nil: there is
	// one.
	Network func() string

	// Snapshot is the mesh as the proxy sees it now; never nil.
	Snapshot func() *model.Snapshot
	// Export is the mesh for programs, as xds/client writes it.
	Export func() ([]byte, error)
	// Live lists the connections there are, in any order.
	Live func() []Connection
	// Ended lists those of the last ended and denied connections that are
	// still remembered, in any order.
	Ended func() []Connection
	// Find looks among both for the sides of one connection.
	Find func(id string) []Connection
	// Flows are the remembered ones; nil if none are.
	Flows *flows.Log
	// LiveFlows yields the connections that carry bytes now.
	LiveFlows func() iter.Seq[flows.Event]
	// Certificates lists those of the node, sorted by identity.
	Certificates func() []Certificate
	// Sections are further parts of the status by name, such as "pods" or
	// "certificates": anything that encodes to a JSON object or to an array
	// of objects.
	Sections func() map[string]any
}

// Run answers until the context ends. While another process answers on the
// socket, such as the proxy that this one replaces, it waits for its turn.
func (s *Server) Run(ctx context.Context) error {
	listener, err := listen(ctx, s.Path)
	if err != nil {
		return err
	}
	return s.serve(ctx, listener)
}

func (s *Server) serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           s.handler(time.Now()),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       readTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          log.New(io.Discard, "", 0), // clients that hang up
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err := server.Serve(netutil.LimitListener(listener, maxClients))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	server.Close()
	return err
}

func (s *Server) handler(started time.Time) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.status(started)) })
	mux.HandleFunc("GET /dump", s.dump)
	mux.HandleFunc("GET /connections", s.connections)
	mux.HandleFunc("GET /flows", s.flows)
	mux.HandleFunc("GET /tap", s.tap)
	mux.HandleFunc("GET /coverage", s.coverage)
	mux.HandleFunc("GET /certificates", s.certificates)
	mux.HandleFunc("GET /explain", s.explain)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return httpserve.Lengthy(mux) // an answer may be about all connections
}
