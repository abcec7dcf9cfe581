package main

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/crl"
	"github.com/tacit-mesh/tacit/internal/audit"
	"github.com/tacit-mesh/tacit/internal/httpserve"
	"github.com/tacit-mesh/tacit/internal/idle"
	"github.com/tacit-mesh/tacit/internal/otlp"
	"github.com/tacit-mesh/tacit/internal/processors"
	"github.com/tacit-mesh/tacit/proxy"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/dns"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/proxy/relay"
	"github.com/tacit-mesh/tacit/proxy/resolve"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/client"
	"github.com/tacit-mesh/tacit/xds/model"
)

// process is everything that makes up a running proxy.
type process struct {
	options
	log      *zap.Logger
	level    zap.AtomicLevel
	agent    *sockets.Agent
	state    *state.State
	names    *resolve.Resolver // before state
	source   io.Closer         // of certificates
	crls     *crl.Lists        // nil without --crl
	store    *identity.Store
	xds      *client.Client
	recorder *telemetry.Recorder
	flows    *flows.Log
	audit    *audit.Log // nil without --audit and --audit-otlp
	// collector is told of traces and of the audit log; nil without --otlp.
	collector *otlp.Exporter
	proxy     *proxy.Proxy
	exports   chan []byte // the newest of the xDS client's
	// handedOver is closed once the agent was sent all that was known when this
	// process was told to end.
	handedOver chan struct{}
	// rootProblem is what the log was told last about the file of --root.
	rootProblem atomic.Value
}

// busy is what a proxy that carries anything worth mentioning allocates in 10 s,
// in bytes.
const busy = 1 << 20

// run serves until the context ends or a newer proxy takes over, and its
// drain after that.
func run(ctx context.Context, o options) error {
	p, err := newProcess(o)
	if err != nil {
		return err
	}
	defer p.source.Close()
	p.log.Info("tacit-proxy starts", zap.String("node", o.node), zap.String("xds", o.xds))

	serving, stop := context.WithCancel(ctx)
	defer stop()
	// What the drain still needs outlives the serving context.
	draining, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	group, draining := errgroup.WithContext(draining)
	group.Go(func() error { return p.store.Run(draining) })
	if p.crls != nil {
		group.Go(func() error { return p.crls.Run(draining) })
	}
	if p.audit != nil || p.collector != nil {
		group.Go(func() error { return p.collector.RunWith(draining, p.audit.Run) })
	}
	group.Go(func() error { return p.followControlPlane(serving, draining) })
	group.Go(func() error { return p.names.Run(draining) })
	group.Go(func() error { return p.reporter().Run(draining) })
	group.Go(func() error { return idle.ReturnMemory(draining, busy) })
	group.Go(func() error { return processors.Follow(draining) })
	group.Go(func() error {
		defer end()
		return p.proxy.Run(p.afterHandover(serving, draining))
	})
	group.Go(func() error {
		defer stop() // nothing but the proxy's own end may outlive a failure
		select {
		case <-p.agent.Draining():
			p.log.Info("a newer proxy has taken over; draining", zap.Duration("at most", o.drain))
		case <-serving.Done():
			p.agent.Leave()
		case <-draining.Done():
		}
		return nil
	})
	group.Go(func() error { return stopped(serving, p.admin().Run(serving)) })
	group.Go(func() error { return p.serveHTTP(serving) })
	if o.istioAdmin != "" {
		group.Go(func() error { return serve(serving, o.istioAdmin, httpserve.Lengthy(p.istio().Handler())) })
	}
	err = group.Wait()
	if o.linger {
		p.awaitEnd(ctx)
	}
	p.log.Info("tacit-proxy ends", zap.Error(err))
	if ctx.Err() != nil || errors.Is(context.Cause(draining), context.Canceled) {
		return ctx.Err()
	}
	return err
}

// awaitEnd keeps a process that was replaced from ending before it is told to:
// a kubelet would start it again, and it would take over from its successor.
func (p *process) awaitEnd(ctx context.Context) {
	select {
	case <-p.agent.Draining():
		p.log.Info("drained; waiting to be told to end")
		<-ctx.Done()
	default:
	}
}

func newProcess(o options) (*process, error) {
	p := &process{options: o, level: zap.NewAtomicLevel(), state: state.New(), exports: make(chan []byte, 1), handedOver: make(chan struct{})}
	p.log = newLog(p.level)
	p.names = resolve.New(resolve.Config{To: p.state, Log: p.log})
	p.agent = sockets.NewAgent(sockets.AgentConfig{Socket: o.agentSocket, Log: p.log})
	var err error
	if p.store, p.source, err = newIdentities(o, p.log); err != nil {
		return nil, err
	}
	var revocations identity.Revocations // none, without a lock to take, by default
	if len(o.crls) > 0 {
		if p.crls, err = crl.Open(o.crls, p.log); err != nil {
			return nil, errors.Join(err, p.source.Close())
		}
		revocations = p.crls
	}
	p.xds = client.New(client.Config{
		Server: o.xds, ServerName: o.serverName, RootsFile: o.root, TokenFile: o.token,
		ClusterID: o.clusterID, Node: o.xdsNode(), Sink: p.names, OnDemand: o.onDemand, Known: p.state.Snapshot, Saved: p.keepExport, Burst: processors.Update, Log: p.log,
	})
	if p.collector, err = o.otlp.Open("tacit-proxy", o.node, p.log); err != nil {
		return nil, errors.Join(err, p.source.Close())
	}
	if p.audit, err = o.audit.Open("tacit-proxy", o.node, o.otlp.Audit(p.collector), p.log); err != nil {
		return nil, errors.Join(err, p.source.Close())
	}
	p.flows = flows.New(o.flows, time.Now())
	p.recorder = telemetry.New(telemetry.Options{
		Log:             p.log,
		Workloads:       func() []*model.Workload { return p.state.Snapshot().Workloads() },
		Generation:      func() uint64 { return p.state.Snapshot().Generation() },
		PoolConnections: func() int { return p.proxy.PoolConnections() },
		Certificates:    p.certificates,
		Ztunnel:         p.ztunnel(),
		Flows:           p.flows,
		Audit:           p.audit,
		Spans:           p.collector, Node: o.node,
	})
	var forwarder *dns.Forwarder
	if o.dnsUpstream != "" {
		forwarder = dns.NewForwarder(o.dnsUpstream)
	}
	var demand func(string) (func(), bool)
	if o.onDemand {
		demand = p.xds.Hold
	}
	parking, err := relay.NewParking(relay.Idle)
	if err != nil {
		return nil, errors.Join(err, p.source.Close())
	}
	p.proxy = proxy.New(proxy.Config{
		Demand: demand,
		DNS:    forwarder, Zone: dns.NewZone(o.domain),
		Node: o.node, Network: o.network, ClusterID: o.clusterID, Sockets: p.agent, State: p.state, Identities: p.store, Recorder: p.recorder, Revocations: revocations,
		Drain: o.drain, CertificateGrace: o.grace, MaxConnsPerPod: connectionsPerPod(o.podShare), MaxQuestionsOutside: max(openFiles()/8, 16), DirectLocal: o.directLocal, TellPolicies: o.tell, TellIdentity: o.tellIdentity,
		Tracing: o.sampler(),
		Parking: parking,
	})
	return p, nil
}

// connectionsPerPod leaves half of the descriptors to other pods: a connection
// takes two, and a pod may have as many to it as from it. (Bulk in clear takes
// pipes, too, but does without them when there are none.) configured is 0 for
// that.
func connectionsPerPod(configured int) int {
	if configured > 0 {
		return max(configured, 4) // the three that accept take one each
	}
	return max(openFiles()/8, 16)
}

// openFiles is how many descriptors the process may have, or a million if that
// is less.
func openFiles() int {
	const most = 1 << 20
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > most {
		return most
	}
	return int(limit.Cur)
}

func (p *process) admin() *admin.Server {
	return &admin.Server{
		Path: p.adminSocket, Node: p.node, Network: p.proxy.NodeNetwork,
		Snapshot:     p.state.Snapshot,
		Export:       p.xds.ExportForPeople,
		Certificates: p.certificateChains,
		Live:         p.proxy.Live, Ended: p.proxy.Ended, Find: p.proxy.Find,
		Flows: p.flows, LiveFlows: p.proxy.LiveFlows,
		Sections: func() map[string]any {
			return map[string]any{
				"pods":         p.proxy.Pods(),
				"controlPlane": p.xds.Status(),
				"certificates": p.certificateViews(),
			}
		},
	}
}

// stopped forgives the error that stopping brings.
func stopped(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	default:
		return err
	}
}

func newLog(level zap.AtomicLevel) *zap.Logger {
	encoder := zap.NewProductionEncoderConfig()
	encoder.TimeKey, encoder.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(encoder), zapcore.Lock(os.Stderr), level))
}
