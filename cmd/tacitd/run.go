package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/zap"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/identity/nodeauth"
	"github.com/tacit-mesh/tacit/internal/httpserve"
	caapi "github.com/tacit-mesh/tacit/xds/api/ca"
	"github.com/tacit-mesh/tacit/xds/server"
	"github.com/tacit-mesh/tacit/xds/source/files"
)

// Bounds on what clients may hold.
const (
	maxConnections = 8192
	maxStreams     = 64       // per connection
	maxMessage     = 16 << 20 // bytes: a request that lists 100,000 versions

	handshakeLimit = 10 * time.Second
	stopLimit      = 5 * time.Second
	// A connection ends after this long at most, so that a token that was
	// taken away ends with it.
	connectionAge = time.Hour
)

// run wires the parts and lets them run until the context ends.
func run(ctx context.Context, o options, log *zap.Logger) error {
	tokens, err := nodeauth.OpenTokenFile(o.tokens, log)
	if err != nil {
		return err
	}
	authority, err := ca.Open(o.caDir, o.settings.TrustDomain)
	if err != nil {
		return err
	}
	certificate, err := authority.ServerCertificate(o.serverName)
	if err != nil {
		return err
	}
	ads := server.New(log, nodeauth.Node)
	mesh := &mesh{settings: o.settings, ads: ads, statusFile: o.statusFile, log: log}
	certificates := &ca.Service{
		Authority: authority, TrustDomain: o.settings.TrustDomain, MaxTTL: o.maxTTL,
		Node: nodeauth.Node, Authorize: mesh.authorize, Log: log,
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listen for proxies: %w", err)
	}
	g := newGRPC(certificate, tokens)
	discovery.RegisterAggregatedDiscoveryServiceServer(g, ads)
	caapi.RegisterIstioCertificateServiceServer(g, certificates)

	log.Info("certificate authority", zap.String("dir", o.caDir), zap.String("trust_domain", o.settings.TrustDomain),
		zap.Time("not_after", authority.NotAfter()))
	log.Info("serving proxies", zap.Stringer("address", listener.Addr()), zap.String("server_name", o.serverName))
	log.Info("reading manifests", zap.String("from", o.from))
	if o.listening != nil {
		o.listening(listener.Addr().String())
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.Serve(netutil.LimitListener(listener, maxConnections)) })
	group.Go(func() error { return (&files.Source{Dir: o.from}).Run(ctx, mesh.update) })
	group.Go(func() error { return mesh.followNodes(ctx) })
	if o.metrics != "" {
		group.Go(func() error { return serveMetrics(ctx, o.metrics, registry(mesh, ads, certificates), log) })
	}
	group.Go(func() error {
		<-ctx.Done()
		log.Info("stopping")
		ads.Close()
		force := time.AfterFunc(stopLimit, g.Stop)
		defer force.Stop()
		g.GracefulStop()
		return ctx.Err()
	})
	return group.Wait()
}

func newGRPC(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), tokens *nodeauth.TokenFile) *grpc.Server {
	return grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			GetCertificate:         certificate,
			MinVersion:             tls.VersionTLS13,
			SessionTicketsDisabled: true,
		})),
		grpc.InTapHandle(tokens.Tap),
		grpc.ConnectionTimeout(handshakeLimit),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 30 * time.Second, Timeout: 10 * time.Second,
			MaxConnectionIdle: 5 * time.Minute, MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: stopLimit,
		}),
	)
}

func serveMetrics(ctx context.Context, address string, handler http.Handler, log *zap.Logger) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", handler)
	log.Info("serving metrics", zap.Stringer("address", listener.Addr()))
	return httpserve.Run(ctx, listener, mux)
}
