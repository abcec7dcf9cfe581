package proxy

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/http"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/relay"
	"github.com/tacit-mesh/tacit/xds/model"
)

// requests are those of one connection to a port that a policy about requests
// covers: each is decided on when it comes, in the newest snapshot, and again
// for as long as it lives.
type requests struct {
	proxy *Proxy
	conn  *Connection

	mu         sync.Mutex // guards what follows
	live       map[*exchange]struct{}
	opaque     bool   // the connection carries no HTTP: it is decided on as a whole
	serverName string // in the ClientHello of one that is opaque
}

// coverage says whether the connection's requests are decided on, and decides
// about the connection itself: in the newest snapshot, and with all that Review
// has been called for meanwhile.
func (p *Proxy) coverage(c *Connection) (policy.Decision, policy.Request) {
	for {
		s := p.State.Snapshot()
		request, _ := c.facts(s, time.Now())
		var r *requests
		var d policy.Decision
		if policy.CoversHTTP(s, request.Workload, c.original.Port()) {
			r = &requests{proxy: p, conn: c, live: map[*exchange]struct{}{}}
			d = policy.EvaluateConnection(s, &request)
		} else {
			d = policy.Evaluate(s, &request)
		}
		if c.settle(s, r) {
			return c.mayLive(d), request
		}
	}
}

// settle has the connection reviewed from now on. It is false if there is reason
// to decide anew: a newer snapshot, or a review that came too early.
func (c *Connection) settle(s *model.Snapshot, r *requests) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.early || c.proxy.State.Snapshot() != s {
		c.early = false
		return false
	}
	c.settled, c.requests = true, r
	return true
}

// Review implements conns.Conn. A connection from before a policy about
// requests is ended, since nothing that it carries could be decided on. Before
// it is known whether requests are decided on nothing can be said.
func (c *Connection) Review(s *model.Snapshot, now time.Time) (policy.Decision, bool) {
	request, checked := c.facts(s, now)
	if !checked {
		return policy.Decision{}, false
	}
	c.mu.Lock()
	r, settled := c.requests, c.settled
	c.early = !settled
	c.mu.Unlock()
	switch {
	case !settled:
		return policy.Decision{}, false
	case r != nil:
		return c.mayLive(r.review(s, request)), true
	case policy.CoversHTTP(s, request.Workload, c.original.Port()) && !underBypass(request):
		return policy.Decision{Reason: policy.ReasonRequestsNow}, true
	}
	c.proxy.meter(c)
	return c.mayLive(policy.Evaluate(s, &request)), true
}

// underBypass: what cannot be decided on by requests need not be.
func underBypass(r policy.Request) bool {
	return r.Bypass != "" || r.Workload != nil && r.Workload.Bypass != ""
}

// review ends the requests under way that are no longer allowed.
func (r *requests) review(s *model.Snapshot, facts policy.Request) policy.Decision {
	r.mu.Lock()
	opaque := r.opaque
	facts.ServerName = r.serverName
	for x := range r.live {
		x.review(s, facts)
	}
	r.mu.Unlock()
	if opaque {
		r.proxy.meter(r.conn)
		return policy.Evaluate(s, &facts)
	}
	return policy.EvaluateConnection(s, &facts)
}

// Opaque implements http.Gate: of what is no HTTP, conditions about requests
// cannot be met.
func (r *requests) Opaque(serverName string) error {
	r.mu.Lock()
	r.opaque, r.serverName = true, serverName
	r.mu.Unlock()
	s := r.proxy.State.Snapshot()
	facts, _ := r.conn.facts(s, time.Now())
	facts.ServerName = serverName
	d := r.conn.mayLive(policy.Evaluate(s, &facts))
	if d.Allowed {
		d = r.proxy.limited(r.conn.context(), r.conn.pod, d, &facts, model.LimitBytes)
	}
	r.conn.judged(d, facts)
	if !d.Allowed {
		r.conn.Deny(d)
		return denied{Decision: d}
	}
	r.proxy.meter(r.conn)
	return r.conn.meterFirst()
}

// Malformed implements http.Gate.
func (r *requests) Malformed(e *http.MalformedError) {
	r.conn.malformed(r.proxy.Recorder, e.Status, e)
}

// Begin implements http.Gate.
func (r *requests) Begin(request *http.Request, live *http.Live) http.Exchange {
	x := &exchange{requests: r, request: request, live: live, began: time.Now()}
	x.traced()
	x.begin()
	return x
}

// protocolOf is what services declare about the connection's port.
func protocolOf(s *model.Snapshot, w *model.Workload, port uint16) http.Protocol {
	switch policy.PortProtocol(s, w, port) {
	case model.AppHTTP11:
		return http.HTTP1
	case model.AppHTTP2, model.AppGRPC:
		return http.HTTP2
	case model.AppTCP, model.AppTLS:
		return http.Opaque
	case model.AppUnknown:
	}
	return http.Undeclared
}

// serveRequests carries a connection whose requests are decided on.
func (p *Proxy) serveRequests(c *Connection, client http.Side, app *net.TCPConn) relay.Result {
	to, err := http.NewSocket(app, nil)
	if err != nil {
		reset(app)
		return relay.Result{End: relay.Aborted, Err: err}
	}
	s := p.State.Snapshot()
	facts, _ := c.facts(s, time.Now())
	result := http.Serve(c.context(), client, to, protocolOf(s, facts.Workload, c.original.Port()), c.record.ID, c.requests)
	if result.End != relay.Finished {
		to.Reset()
		client.Reset()
		return result
	}
	_ = app.Close()
	return result
}

// serveStream is serveRequests for a stream of HBONE.
func (p *Proxy) serveStream(c *Connection, s *hbone.ServerStream, app *net.TCPConn) relay.Result {
	result := p.serveRequests(c, s.Terminate(), app)
	if result.End == relay.Finished {
		s.End()
	}
	return result
}

// servePlain is serveRequests for a connection without mTLS.
func (p *Proxy) servePlain(c *Connection, client, app *net.TCPConn, counts *relay.Counts) relay.Result {
	from, err := http.NewSocket(client, counts)
	if err != nil {
		reset(app)
		return relay.Result{End: relay.Aborted, Err: err}
	}
	result := p.serveRequests(c, from, app)
	if result.End == relay.Finished {
		_ = client.Close()
	}
	return result
}

// errRefused is why a request that was answered here went no further.
func errRefused(status int, why error) error {
	return fmt.Errorf("answered with %d: %w", status, why)
}

var errNoConnect = errors.New("CONNECT is only for callers that an ALLOW policy names the method for")
