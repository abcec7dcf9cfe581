// Package proxy is the data plane of one node: it serves the captured
// connections of every enrolled pod.
//
// The story of a connection is outbound.go on the client's node, then
// inbound.go (mTLS) or plaintext.go on the server's; each is one function with
// named phases. pods.go accepts them, tunnels.go says which of them share an
// mTLS connection, local.go joins the two ends where both are in this process.
// What does not belong here: making sockets (proxy/sockets), deciding
// (proxy/policy, proxy/route), moving bytes (proxy/relay, proxy/hbone).
package proxy

import (
	"context"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/internal/portions"
	"github.com/tacit-mesh/tacit/proxy/conns"
	"github.com/tacit-mesh/tacit/proxy/dns"
	"github.com/tacit-mesh/tacit/proxy/extauthz"
	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/jwt"
	"github.com/tacit-mesh/tacit/proxy/ratelimit"
	"github.com/tacit-mesh/tacit/proxy/relay"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/proxy/tracing"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// Bounds of the waits in a connection's life. Where a wait is for a socket, the
// time without an agent, which may be on its way to the node as an image, is
// not counted up to agentTimeout. Who waits is among MaxConnsPerPod.
const (
	handshakeTimeout = 10 * time.Second
	decisionTimeout  = 5 * time.Second  // for the control plane's first word on a pod
	connectTimeout   = 10 * time.Second // until some endpoint has answered
	dialTimeout      = 10 * time.Second // of an application
	agentTimeout     = time.Minute
)

// curiousRate is how many names a second are asked for though no decision needs
// them.
const curiousRate = 100

// Config is what a Proxy works with; all of it is required but the switches.
type Config struct {
	Node    string
	Network string // of pods that the control plane has not named yet
	// ClusterID is by what the control plane calls this cluster in the UIDs of
	// its workloads. With it, a pod's network is what the control plane says
	// of the pod, which connections of the pod wait for.
	ClusterID  string
	Sockets    sockets.Provider
	State      *state.State
	Identities *identity.Store
	// Demand asks for a name, as of client.Client.Hold, where State has only
	// what was asked for; nil: it has everything. Then no name of the mesh's is
	// answered by DNS.
	Demand func(name string) (release func(), ok bool)
	// DNS asks what the mesh does not know; nil answers no DNS queries. Zone is
	// where the cluster's services have their names.
	DNS      *dns.Forwarder
	Zone     dns.Zone
	Recorder *telemetry.Recorder
	// Revocations are the certificates that are taken back; nil is none.
	Revocations identity.Revocations
	// Drain is how long live connections may go on once Run is told to end.
	Drain time.Duration
	// Parking, which the proxy runs, takes idle connections; nil keeps a
	// goroutine for each.
	Parking *relay.Parking
	// MaxConnsPerPod bounds the connections from one pod at a time, and as
	// many to it; more wait in the kernel's queue.
	MaxConnsPerPod int
	// MaxQuestionsOutside bounds the questions of all pods to providers over
	// HTTP that are not in the mesh, each of which has a connection of the
	// proxy's own; more wait, and the pods share. It is no more than
	// extauthz.MaxConns; with 0 none is asked.
	MaxQuestionsOutside int
	// CertificateGrace is how long streams may go on once the certificate of
	// either side has ended; 0 is without end.
	CertificateGrace time.Duration
	// DirectLocal joins the two sockets of a connection between pods of
	// this node, after authorization, instead of carrying its bytes through
	// the tunnel.
	DirectLocal bool
	// TellPolicies names the policy in the answer to a request that it denies.
	TellPolicies bool
	// TellIdentity puts the caller's identity into X-Forwarded-Client-Cert of
	// requests that are decided on, in the place of what the caller says there.
	TellIdentity bool
	// Tracing says of which connections and requests there are spans, which the
	// Recorder sends; nil: of none, and requests are not told of any trace.
	Tracing *tracing.Sampler
}

// Proxy serves the pods that its sockets.Provider reports.
type Proxy struct {
	Config
	pool  *hbone.Pool
	conns *conns.Table[*Connection]
	local handovers
	// curious bounds what is asked for though no decision needs it.
	curious *rate.Limiter
	names   *portions.Portions[*heldNames]
	hosts   keptHosts

	tokens    *jwt.Verifier
	providers *extauthz.Client
	outside   *turns[string] // slots for questions, by UIDs of pods
	limits    *ratelimit.Limiter

	mu       sync.Mutex
	pods     map[string]*pod
	leaving  map[string]*pod // no longer captured, but with connections
	draining bool
	synced   chan struct{}
	live     sync.WaitGroup // connections and accept loops

	drained context.Context // ends when no more connections are accepted
	drain   context.CancelFunc
}

// New makes a proxy; Run starts it.
func New(c Config) *Proxy {
	p := &Proxy{
		Config:  c,
		conns:   conns.NewTable[*Connection](),
		pods:    map[string]*pod{},
		leaving: map[string]*pod{},
		synced:  make(chan struct{}),
		curious: rate.NewLimiter(curiousRate, curiousRate),
		names:   portions.New[*heldNames](maxNames, maxNamesOfPod, true),
		hosts:   keptHosts{names: map[string]*keptHost{}},
	}
	p.tokens = jwt.NewVerifier()
	p.outside = newTurns[string](min(c.MaxQuestionsOutside, extauthz.MaxConns))
	p.providers, p.limits = extauthz.New(p.dialOut), ratelimit.New(p.dialOut)
	p.drained, p.drain = context.WithCancel(context.Background())
	p.pool = hbone.NewPool(hbone.PoolConfig{
		Dial: p.dialPeer, TLS: p.peerTLS, Budget: p.budgetOf, Grace: c.CertificateGrace, Parking: c.Parking,
		WithTimeout: p.withTimeout, DialTimeout: connectTimeout,
		AnswerTimeout: 2 * agentTimeout, // whoever opens a stream waits for less
	})
	return p
}

// Run serves until the context ends. Then it accepts no more connections,
// which queue for the next process that has the listeners, lets the live ones
// go on for at most Config.Drain, and resets what remains.
func (p *Proxy) Run(ctx context.Context) error {
	inner, force := context.WithCancel(context.WithoutCancel(ctx))
	defer force()
	group, inner := errgroup.WithContext(inner)
	group.Go(func() error { return p.Sockets.Run(inner, p) })
	group.Go(func() error { return p.conns.Run(inner, p.State) })
	group.Go(func() error { return p.pool.Run(inner) })
	if p.Parking != nil {
		group.Go(func() error { return p.Parking.Run(inner) })
	}
	group.Go(func() error { return p.evictMoved(inner) })
	group.Go(func() error { return p.followRevocations(inner) })
	group.Go(func() error { return p.Recorder.Run(inner) })
	group.Go(func() error { return p.reportProgress(inner) })
	select {
	case <-ctx.Done():
		p.waitDrained(inner)
	case <-inner.Done():
	}
	force()
	p.closePods()
	err := group.Wait()
	p.live.Wait()
	p.providers.Close()
	p.limits.Close()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// waitDrained stops accepting and waits for live connections to end by
// themselves.
func (p *Proxy) waitDrained(ctx context.Context) {
	p.stopAccepting()
	ended := make(chan struct{})
	go func() {
		p.live.Wait()
		close(ended)
	}()
	grace := time.NewTimer(p.Drain)
	defer grace.Stop()
	select {
	case <-ended:
	case <-grace.C:
	case <-ctx.Done():
	}
}

// Ready is closed once every pod of the first full list is served.
func (p *Proxy) Ready() <-chan struct{} { return p.synced }
