package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/internal/httpserve"
)

// rebindPause is the time between two attempts to take over a port.
const rebindPause = 50 * time.Millisecond

// serveHTTP answers Prometheus and readiness probes until the context ends.
func (p *process) serveHTTP(ctx context.Context) error {
	metrics, readiness := http.NewServeMux(), http.NewServeMux()
	scrape := httpserve.Lengthy(p.recorder.Handler())
	metrics.Handle("GET /metrics", scrape)
	metrics.Handle("GET /stats/prometheus", scrape)
	readiness.HandleFunc("GET /healthz/ready", p.ready)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(ctx, p.metrics, metrics) })
	group.Go(func() error { return serve(ctx, p.readiness, readiness) })
	return group.Wait()
}

// ready is 200 once every pod of the node is served and the mesh is known.
func (p *process) ready(w http.ResponseWriter, _ *http.Request) {
	select {
	case <-p.proxy.Ready():
	default:
		http.Error(w, "not ready: tacit-agent has not named this node's pods yet", http.StatusServiceUnavailable)
		return
	}
	select {
	case <-p.xds.Ready():
		fmt.Fprintln(w, "ready")
	default:
		http.Error(w, "not ready: the control plane has not sent the mesh yet", http.StatusServiceUnavailable)
	}
}

func serve(ctx context.Context, address string, handler http.Handler) error {
	listener, err := listen(ctx, address)
	if err != nil {
		return stopped(ctx, err)
	}
	return stopped(ctx, httpserve.Run(ctx, listener, handler))
}

// listen waits while the proxy that this one replaces still has the port.
func listen(ctx context.Context, address string) (net.Listener, error) {
	for {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return listener, err
		}
		select {
		case <-time.After(rebindPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
