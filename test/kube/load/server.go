package load

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
)

// Serve listens on all ports of a server until the context ends. Then it
// goes on for the time of lameDuck, as a server should that Kubernetes has
// only begun to take out of its services, and ends when its connections have.
func Serve(ctx context.Context, lameDuck time.Duration) error {
	echo, err := net.Listen("tcp", fmt.Sprintf(":%d", EchoPort))
	if err != nil {
		return err
	}
	web, err := net.Listen("tcp", fmt.Sprintf(":%d", HTTPPort))
	if err != nil {
		return err
	}
	probes, err := net.Listen("tcp", fmt.Sprintf(":%d", HealthPort))
	if err != nil {
		return err
	}
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(lameDuck, cancel) })
	defer stop()
	group, late := errgroup.WithContext(late)
	taken := &counted{Listener: echo}
	group.Go(func() error { return ServeEcho(late, taken) })
	group.Go(func() error { return serveHTTP(late, web, newHandler(&taken.connections)) })
	group.Go(func() error { return serveHealth(late, probes) })
	return group.Wait()
}

// serveHealth is well as long as it is there.
func serveHealth(ctx context.Context, l net.Listener) error {
	server := grpc.NewServer()
	healthgrpc.RegisterHealthServer(server, health.NewServer())
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(l); err != nil {
		return err
	}
	return ctx.Err()
}

// counted is a listener that counts the connections that it took.
type counted struct {
	net.Listener
	connections atomic.Int64
}

// Accept implements [net.Listener].
func (c *counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.connections.Add(1)
	}
	return conn, err
}

func newHandler(taken *atomic.Int64) http.Handler {
	host, err := os.Hostname()
	if err != nil {
		host = err.Error()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		// All of it first: HTTP/1.1 has no answers to half a request.
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostBytes))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Server", host)
		_, _ = w.Write(body) // the client sees what is missing
	})
	mux.HandleFunc("GET "+takenPath, func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, taken.Load()) })
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", host)
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = fmt.Fprintf(w, "%s %s\n", host, client)
	})
	return mux
}

// ServeEcho sends back what arrives, until the context ends.
func ServeEcho(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			return context.Cause(ctx)
		}
		go func() {
			defer func() { _ = c.Close() }()
			if _, err := io.Copy(c, c); err == nil {
				_ = c.(*net.TCPConn).CloseWrite()
			}
		}()
	}
}
