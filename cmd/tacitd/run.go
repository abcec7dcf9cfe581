package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/zap"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/tap"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/identity/nodeauth"
	"github.com/tacit-mesh/tacit/internal/httpserve"
	"github.com/tacit-mesh/tacit/internal/otlp"
	"github.com/tacit-mesh/tacit/sight/page"
	caapi "github.com/tacit-mesh/tacit/xds/api/ca"
	"github.com/tacit-mesh/tacit/xds/build"
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

// platform is where tacitd runs: what differs between a cluster and a directory
// of manifests.
type platform struct {
	tap       tap.ServerInHandle // who may connect
	authority *ca.Authority
	from      zap.Field                          // where objects come from
	objects   func(context.Context, *mesh) error // brings them until the context ends
	waiting   func() []string                    // what is not there yet
	tasks     []func(context.Context) error      // what else has to be done
	tell      func([]build.PolicyStatus)         // takes statuses; nil for nobody
	interval  time.Duration                      // between statuses
	door      page.Door                          // of the map
	keep      keeper                             // of when policies were of use; nil for nobody
}

// service is what proxies connect to, and what it is made of.
type service struct {
	options
	*platform
	log          *zap.Logger
	ads          *server.Server
	mesh         *mesh
	certificates *ca.Service
	grpc         *grpc.Server
	seen         *observed
	collector    *otlp.Exporter // nil: none
	listener     net.Listener
	metrics      net.Listener // nil: not wanted
}

// run wires the parts and lets them run until the context ends.
func run(ctx context.Context, o options, log *zap.Logger) error {
	metrics, err := listenMetrics(ctx, o.metrics) // so that probes are answered from the start
	if err != nil {
		return err
	}
	if metrics != nil {
		defer metrics.Close()
	}
	open := openFiles
	if o.kubernetes {
		open = openCluster
		o.settings.Accounts = true
	}
	p, err := open(ctx, o, log)
	if err != nil {
		return err
	}
	s, err := newService(o, p, log)
	if err != nil {
		return err
	}
	s.metrics = metrics
	if s.listener, err = net.Listen("tcp", o.listen); err != nil {
		return fmt.Errorf("listen for proxies: %w", err)
	}
	log.Info("certificate authority", zap.String("trust_domain", o.settings.TrustDomain), zap.Time("not_after", p.authority.NotAfter()))
	log.Info("serving proxies", zap.Stringer("address", s.listener.Addr()), zap.String("server_name", o.serverName))
	log.Info("reading objects", p.from)
	o.announce(s.listener, metrics)
	return s.run(ctx)
}

// newService makes the parts and registers what proxies may call.
func newService(o options, p *platform, log *zap.Logger) (*service, error) {
	certificate, err := p.ownCertificate(o, log)
	if err != nil {
		return nil, err
	}
	s := &service{options: o, platform: p, log: log, ads: server.New(log, nodeauth.Node)}
	s.mesh = newMesh(o.settings, s.ads, log)
	s.mesh.statusFile, s.mesh.tell, s.mesh.interval = o.statusFile, p.tell, p.interval
	s.mesh.keys = newFetcher(s.mesh, o.jwksRefresh, log)
	if s.collector, err = o.otlp.Open("tacitd", "", log); err != nil {
		return nil, err
	}
	if s.mesh.audit, err = o.audit.Open("tacitd", "", o.otlp.Audit(s.collector), log); err != nil {
		return nil, err
	}
	s.certificates = &ca.Service{
		Authority: p.authority, TrustDomain: o.settings.TrustDomain, Aliases: o.settings.TrustDomainAliases, MaxTTL: o.maxTTL,
		Node: nodeauth.Node, Authorize: s.mesh.authorize, Log: log, Audit: s.mesh.audit,
	}
	s.grpc = newGRPC(certificate, p.tap)
	discovery.RegisterAggregatedDiscoveryServiceServer(s.grpc, s.ads)
	caapi.RegisterIstioCertificateServiceServer(s.grpc, s.certificates)
	s.seen = o.observe(s.grpc, s.ads, s.mesh, log)
	if s.seen != nil {
		p.authority.Look(s.seen.judges)
	}
	return s, nil
}

// writeAudit writes the audit log, and tells a collector what is in it.
func (s *service) writeAudit(ctx context.Context) error {
	return s.collector.RunWith(ctx, s.mesh.audit.Run)
}

// run serves until the context ends, or a part of it does.
func (s *service) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.grpc.Serve(netutil.LimitListener(s.listener, maxConnections)) })
	group.Go(func() error { return s.objects(ctx, s.mesh) })
	for _, task := range append(s.tasks, s.mesh.followStatus, s.mesh.followTime, s.mesh.keys.Run, s.writeAudit, s.remember(s.seen, s.keep, s.log)) {
		group.Go(func() error { return task(ctx) })
	}
	if s.ui != "" {
		group.Go(func() error { return s.serveUI(ctx, s.seen, s.door, s.log) })
	}
	if s.metrics != nil {
		s.log.Info("serving metrics and readiness", zap.Stringer("address", s.metrics.Addr()))
		group.Go(func() error {
			return httpserve.Run(ctx, s.metrics, answers(s.mesh, s.waiting, registry(s.mesh, s.ads, s.certificates, s.seen, s.collector)))
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		s.log.Info("stopping")
		stop(s.grpc, s.ads)
		return ctx.Err()
	})
	return group.Wait()
}

// announce tells who asked which addresses there are.
func (o *options) announce(proxies, metrics net.Listener) {
	if o.listening == nil {
		return
	}
	at := ""
	if metrics != nil {
		at = metrics.Addr().String()
	}
	o.listening(proxies.Addr().String(), at)
}

// stop ends streams in order, and what does not end by force.
func stop(g *grpc.Server, ads *server.Server) {
	ads.Close()
	force := time.AfterFunc(stopLimit, g.Stop)
	defer force.Stop()
	g.GracefulStop()
}

// openFiles has the mesh from a directory, and the CA and tokens from files.
func openFiles(ctx context.Context, o options, log *zap.Logger) (*platform, error) {
	tokens, err := nodeauth.OpenTokenFile(o.tokens, log)
	if err != nil {
		return nil, err
	}
	p := &platform{
		tap: tokens.Tap, door: openDoor{}, from: zap.String("from", o.from), keep: inFile(o.policyUses),
		objects: func(ctx context.Context, m *mesh) error { return (&files.Source{Dir: o.from}).Run(ctx, m.update) },
		waiting: func() []string { return []string{"the manifests in " + o.from} },
	}
	return p, p.openAuthorityIn(ctx, o, log)
}

func newGRPC(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), authenticate tap.ServerInHandle) *grpc.Server {
	return grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			GetCertificate:         certificate,
			MinVersion:             tls.VersionTLS13,
			SessionTicketsDisabled: true,
		})),
		grpc.InTapHandle(authenticate),
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

// listenMetrics is nil without an address.
func listenMetrics(ctx context.Context, address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	return listener, nil
}

// answers are metrics and readiness: 200 once proxies are sent the mesh.
func answers(m *mesh, waiting func() []string, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		if m.ready() {
			fmt.Fprintln(w, "ready")
			return
		}
		http.Error(w, "not ready: waiting for "+strings.Join(waiting(), "; "), http.StatusServiceUnavailable)
	})
	return mux
}
