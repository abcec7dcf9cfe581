// Package httpserve answers small HTTP requests, of Prometheus and of probes,
// from anybody on the network, within bounds.
//
// What does not belong here: what is answered, and where a program listens.
package httpserve

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"

	"github.com/tacit-mesh/tacit/internal/processors"
)

const (
	clients   = 32
	timeout   = 10 * time.Second
	maxHeader = 8 << 10 // bytes
)

// Run serves until the context ends, closes the listener, and returns the
// context's error.
func Run(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler: handler, ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: timeout, MaxHeaderBytes: maxHeader,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err := server.Serve(netutil.LimitListener(listener, clients))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("serve HTTP on %v: %w", listener.Addr(), err)
}

// Lengthy is for answers that keep a processor busy.
func Lengthy(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		processors.Busy()
		h.ServeHTTP(w, r)
	})
}
