package proxy

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/relay"
	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/proxy/tracing"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Connection is one connection that the proxy carries, as its own goroutine
// tells its story and as the table of live connections and the admin socket
// read it.
type Connection struct {
	proxy    *Proxy
	pod      *pod
	conn     *net.TCPConn   // the captured one; nil for a stream of HBONE
	caller   *caller        // on HBONE
	original netip.AddrPort // where the application meant to go
	held     *holder        // the names on demand that it has to do with; nil without demand
	whence   *holder        // that of the other end, of an inbound one; nil without demand
	working  func()         // tells the caller that it takes longer; nil if it cannot be told

	mu       sync.Mutex // guards what follows
	ender    ender      // see life.go; nil once it has ended
	cause    error      // of an end from here
	bypass   string     // that has let the connection live, and lets it to its end
	settled  bool       // whether requests are decided on
	early    bool       // a review came before that
	opened   bool
	placed   bool      // it takes a place among those to the pod
	metered  *meter    // of its bytes, if limits hold for these
	requests *requests // those, if they are
	record   telemetry.Record
	ended    time.Time
	counts   *relay.Counts
}

// denied is why a connection is ended that is no longer allowed: what it waits for,
// or the stream that carries it.
type denied struct {
	policy.Decision
	skipped bool   // by the client: hence no identity
	bypass  string // that the client is under: hence no identity
}

func (d denied) Error() string {
	switch {
	case d.bypass != "":
		return d.String() + "; its client is under bypass " + d.bypass + ", and so comes without an identity"
	case d.skipped:
		return d.String() + "; its client skips this port or address on the way out, and so comes without an identity"
	}
	return d.String()
}

// begin is a connection that was captured in a pod.
func (p *Proxy) begin(pod *pod, conn *net.TCPConn, direction telemetry.Direction) *Connection {
	c := p.newConnection(pod, addrPort(conn.RemoteAddr()), direction)
	c.conn = conn
	c.record.ID = tracing.NewTrace()
	c.record.Span = p.Tracing.Root(c.record.ID)
	if direction == telemetry.Outbound {
		c.record.Source.Identity = pod.identity
		c.record.Source.Name, c.record.Source.Namespace = pod.Name, pod.Namespace
		p.conns.Add(c) // inbound ones enter with their destination
	}
	return c
}

func (p *Proxy) newConnection(pod *pod, source netip.AddrPort, direction telemetry.Direction) *Connection {
	c := &Connection{proxy: p, pod: pod}
	if p.Demand != nil {
		c.held, c.whence = &holder{share: pod.share.names}, &holder{share: pod.share.names}
	}
	c.wait()
	c.record.Direction = direction
	c.record.Start = time.Now()
	c.record.Source.Addr = source
	if direction == telemetry.Inbound {
		c.record.Destination.Name, c.record.Destination.Namespace = pod.Name, pod.Namespace
	}
	return c
}

// end tells how the connection ended. A captured connection that was not
// carried to its end is reset: never a clean FIN for what failed.
func (p *Proxy) end(c *Connection) {
	c.forgetEnder()
	if c.conn != nil {
		reset(c.conn)
	}
	c.mu.Lock()
	c.ended = time.Now()
	if c.counts != nil {
		c.record.Sent, c.record.Received = c.moved()
		c.counts, c.metered = nil, nil // parts of the stream, which is not to be remembered
	}
	c.working = nil // nor is what knows it
	p.Recorder.Closed(&c.record)
	c.mu.Unlock()
	p.conns.End(c)
	c.held.release(p)
	c.whence.release(p)
	if c.placed {
		give(c.pod.share.inbound)
	}
}

// ID implements conns.Conn.
func (c *Connection) ID() string { return c.record.ID }

// source is where the connection comes from, which never changes.
func (c *Connection) source() netip.AddrPort { return c.record.Source.Addr }

// peer is the caller's identity; zero but on HBONE.
func (c *Connection) peer() model.Identity {
	if c.caller == nil {
		return model.Identity{}
	}
	return c.caller.peer
}

// facts are those of an inbound connection; false for outbound ones. The
// workload at the source address counts only if it has the verified identity.
func (c *Connection) facts(s *model.Snapshot, now time.Time) (policy.Request, bool) {
	if c.record.Direction == telemetry.Outbound {
		return policy.Request{}, false
	}
	r := policy.Request{
		Source:      c.source().Addr(),
		Identity:    c.peer(),
		Destination: c.original,
		Workload:    workloadOf(s, c.pod),
		Time:        now,
		Revoked:     c.caller != nil && c.caller.takenBack != nil && c.caller.takenBack(),
		Bypass:      c.bypassed(),
	}
	if w := s.WorkloadAt(networkOf(s, c.pod), c.source().Addr()); w != nil && (c.peer().IsZero() || w.Is(c.peer())) {
		r.SourceWorkload = w
	}
	return r, true
}

// bypassed is the bypass that has let the connection live.
func (c *Connection) bypassed() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bypass
}

// mayLive notes a bypass without which a decision would have ended the
// connection: the bypass's own end does not.
func (c *Connection) mayLive(d policy.Decision) policy.Decision {
	if d.Reason == policy.ReasonBypassed {
		c.mu.Lock()
		c.bypass = d.Bypass
		c.mu.Unlock()
	}
	return d
}

// whole are the facts of an inbound connection that is decided on as a whole;
// false for any other.
func (c *Connection) whole(s *model.Snapshot) (policy.Request, bool) {
	request, inbound := c.facts(s, time.Now())
	c.mu.Lock()
	r := c.requests
	c.mu.Unlock()
	if r == nil {
		return request, inbound
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	request.ServerName = r.serverName
	return request, inbound && r.opaque
}

// known reports whether a snapshot has what a decision needs.
func (c *Connection) known(s *model.Snapshot) bool {
	request, _ := c.facts(s, time.Now())
	switch policy.Evaluate(s, &request).Reason {
	case policy.ReasonNotReady, policy.ReasonUnknownWorkload, policy.ReasonMissingPolicy:
		return false
	default:
		return true
	}
}

// Deny implements conns.Conn: it ends the connection, whose goroutine resets
// both of its sides.
func (c *Connection) Deny(d policy.Decision) { c.cancel(denied{Decision: d}) }

// setDestination notes where the application meant to go.
func (c *Connection) setDestination(dst netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.original = dst
	c.record.Destination.Addr = dst
}

// setRoute notes who calls which service.
func (c *Connection) setRoute(source *model.Workload, r route.Route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Source.Workload = source
	c.record.Service = r.Service
}

// setCandidate notes where the connection is about to go, and how.
func (c *Connection) setCandidate(to route.Candidate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Destination = telemetry.End{Addr: to.Target, Workload: to.Workload}
	switch to.Means {
	case route.HBONE:
		c.record.Security = telemetry.MTLS
		c.record.Destination.Identity = to.Workload.Identity()
	case route.Skipped:
		c.record.Security = telemetry.Skipped
	case route.Passthrough:
		c.record.Security = telemetry.Passthrough
	case route.Unmeshed:
		c.record.Security = telemetry.Plain
	}
}

// phase starts a phase and returns what ends it. A phase that is repeated
// counts in all.
func (c *Connection) phase(p telemetry.Phase) (done func()) {
	began := time.Now()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.record.Phases[p] += time.Since(began)
	}
}

// judged notes a decision and its ends.
func (c *Connection) judged(d policy.Decision, r policy.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Source.Workload = r.SourceWorkload
	c.record.Source.Identity = c.peer()
	c.record.Destination.Workload = r.Workload
	c.record.Destination.Identity = c.pod.identity
	c.record.Policy, c.record.Attribute, c.record.DryRun = d.Policy, d.Attribute, d.DryRun
	c.record.Closest = d.Reason == policy.ReasonNotAllowed
	c.record.Reason, c.record.Bypass = d.Reason.String(), d.Bypass
}

// opening counts the connection as one that carries bytes, which counts tells.
func (p *Proxy) opening(c *Connection, security telemetry.Security, counts *relay.Counts) {
	c.open(p.Recorder, security, counts)
	p.meter(c)
}

func (c *Connection) open(recorder *telemetry.Recorder, security telemetry.Security, counts *relay.Counts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opened || !c.ended.IsZero() {
		return
	}
	c.opened = true
	c.counts = counts
	c.record.Security = security
	c.record.Err, c.record.Outcome = nil, telemetry.OK
	recorder.Opened(&c.record)
}

// moved is how many bytes have gone from the source to the destination, and
// back. A stream counts as its own application sees it, which is the
// destination at the end of a tunnel. The caller holds mu.
func (c *Connection) moved() (sent, received int64) {
	sent, received = c.counts.Sent.Load(), c.counts.Received.Load()
	if c.record.Direction == telemetry.Inbound && c.record.Security == telemetry.MTLS {
		return received, sent
	}
	return sent, received
}

// fail notes why the connection was not established.
func (c *Connection) fail(reason string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Outcome, c.record.Reason, c.record.Err = telemetry.Failed, reason, err
}

// revoked reports, and notes, that the connection is no longer allowed.
func (c *Connection) revoked() bool {
	var d denied
	if !errors.As(c.endCause(), &d) {
		return false
	}
	c.deny(d.Decision)
	return true
}

// closed notes how the bytes ended.
func (c *Connection) closed(r relay.Result) {
	if c.revoked() {
		return
	}
	if r.End == relay.Finished {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Outcome, c.record.Reason, c.record.Err = telemetry.Reset, string(r.End), r.Err
}

// deniedByPeer notes a denial at the far side, whose log has the reason.
func (c *Connection) deniedByPeer(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Outcome, c.record.Reason, c.record.Err = telemetry.Denied, "denied_by_peer", err
}

// deny notes a denial.
func (c *Connection) deny(d policy.Decision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Outcome = telemetry.Denied
	c.record.Policy, c.record.Attribute, c.record.DryRun = d.Policy, d.Attribute, d.DryRun
	c.record.Closest = d.Reason == policy.ReasonNotAllowed
	c.record.Reason = d.Reason.String()
	why := denied{Decision: d, skipped: c.clientSkips(), bypass: c.clientBypass()}
	switch {
	case why.bypass != "":
		c.record.Reason = "client_bypassed"
	case why.skipped:
		c.record.Reason = "client_skips_port"
	}
	c.record.Err = why
}

// clientBypass is the bypass for which a plaintext connection has no identity.
// The caller holds mu.
func (c *Connection) clientBypass() string {
	if w := c.record.Source.Workload; w != nil && c.peer().IsZero() {
		return w.Bypass
	}
	return ""
}

// clientSkips reports whether a plaintext connection would have had an
// identity, had its client not skipped this destination. The caller holds mu.
func (c *Connection) clientSkips() bool {
	w := c.record.Source.Workload
	if w == nil || !c.peer().IsZero() || w.Protocol != model.ProtocolHBONE {
		return false
	}
	return w.SkipsOutbound(c.original)
}

// sourceFor is the client's own address where it is of the target's family.
func (c *Connection) sourceFor(target netip.AddrPort) netip.Addr {
	if c.source().Addr().Is4() == target.Addr().Is4() {
		return c.source().Addr()
	}
	return netip.Addr{}
}

// addrPort is the address of a TCP connection, never an IPv4-mapped one.
func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// reset closes a connection with RST; a closed one stays as it is.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}
