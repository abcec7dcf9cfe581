package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"time"

	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/relay"
	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/model"
)

// A refused HBONE port is most likely that of a pod which is being captured
// just now, a lost connection that of a proxy which is being replaced: it is
// tried again, first after retryFirst, until the deadline.
const (
	retryFirst = 20 * time.Millisecond
	retryMost  = 500 * time.Millisecond
)

// outbound carries one connection that a local pod opened.
func (p *Proxy) outbound(pod *pod, app *net.TCPConn) {
	c := p.begin(pod, app, telemetry.Outbound)
	defer p.end(c)

	dst, err := sockets.OriginalDst(app)
	if err == nil && dst == addrPort(app.LocalAddr()) {
		// To itself it would go on for ever.
		err = fmt.Errorf("connection to %v, the proxy itself, that was not redirected", dst)
	}
	if err != nil {
		c.fail("no_original_destination", err)
		return
	}
	c.setDestination(dst)

	// The deadline is for finding someone who answers; then it is stopped.
	ctx, end := context.WithCancelCause(c.ctx)
	defer end(nil)
	deadline := newDeadline(p.Sockets.Absence, connectTimeout, func() { end(errNoAnswer) })
	defer deadline.stop()
	attempt := &attempt{Connection: c, ctx: ctx, deadline: deadline}
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		r, err := p.resolve(ctx, c)
		if err != nil {
			c.fail("no_route", err)
			return
		}
		if again := p.connect(attempt, r); !again {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

var errNoAnswer = fmt.Errorf("no endpoint has answered in %v", connectTimeout)

// attempt is an outbound connection on its way to someone who answers.
type attempt struct {
	*Connection
	ctx      context.Context // ends at the deadline
	deadline *deadline       // stopped by the first answer
	replay   *hbone.Replay   // what the application has sent meanwhile
}

// resolve decides where the connection may go, in one snapshot. It waits for
// the first full list of workloads, and for the pod's own where that says the
// network: what is merely not known yet must not leave in clear.
func (p *Proxy) resolve(ctx context.Context, c *Connection) (route.Route, error) {
	defer c.phase(telemetry.PhaseResolve)()
	wait, cancel := context.WithTimeout(ctx, decisionTimeout)
	defer cancel()
	// Without it Resolve refuses, and says that.
	snapshot, _ := p.State.Wait(wait, func(s *model.Snapshot) bool { return placed(s, c.pod) })
	if snapshot.AddressesReady() && !placed(snapshot, c.pod) {
		return route.Route{}, unplaced(c.pod)
	}
	source := route.Source{
		Workload:  workloadOf(snapshot, c.pod),
		Address:   c.source.Addr(),
		Namespace: c.pod.Namespace,
		Node:      p.Node,
		Network:   p.Network,
	}
	r := route.Resolve(snapshot, source, c.original)
	c.setRoute(source.Workload, r)
	if r.Refusal != route.NotRefused {
		return r, fmt.Errorf("no route to %v: %v", c.original, r.Refusal)
	}
	return r, nil
}

// connect tries the route's candidates in turn and carries the connection to
// the first that answers. It reports whether trying all again may help.
func (p *Proxy) connect(a *attempt, r route.Route) (again bool) {
	for to := range r.Candidates(rand.Uint64()) {
		a.setCandidate(to)
		var err error
		if to.Means == route.HBONE {
			err = p.tunnel(a, to)
		} else {
			err = p.direct(a, to)
		}
		var refused *hbone.RefusedError
		switch {
		case err == nil:
			return false
		case errors.As(err, &refused) && refused.Status == statusDenied:
			a.deniedByPeer(err) // and not to be tried elsewhere
			return false
		case errors.As(err, &refused) && !refused.Retryable():
			a.fail("refused_by_peer", err)
			return false
		}
		a.fail("connect_failed", err)
		if a.ctx.Err() != nil {
			return false
		}
		again = again || to.Means == route.HBONE && peerAway(err)
	}
	return again
}

// peerAway reports whether the peer's proxy may be back in a moment: it refused
// the connection, or was lost before it had taken anything. So may the agent of
// this node, for which another connection may have waited until its own deadline.
func peerAway(err error) bool {
	var refused *hbone.RefusedError
	if errors.As(err, &refused) {
		return refused.Status == 0
	}
	for _, passing := range []error{syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, io.EOF, sockets.ErrNoSocket} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// direct carries the connection in plain TCP.
func (p *Proxy) direct(a *attempt, to route.Candidate) error {
	dialed := a.phase(telemetry.PhaseConnect)
	server, err := p.Sockets.Dial(a.ctx, a.pod.UID, a.sourceFor(to.Target), to.Target)
	dialed()
	if err != nil {
		return fmt.Errorf("connect to %v: %w", to.Target, err)
	}
	a.deadline.stop()
	counts := new(relay.Counts)
	p.opening(a.Connection, a.record.Security, counts)
	a.closed(relay.Copy(a.Connection.ctx, a.conn, server, counts))
	return nil
}

// tunnel carries the connection in a stream of a pooled mTLS connection. DATA
// goes out before the answer; what was sent by then is kept for the next
// candidate.
func (p *Proxy) tunnel(a *attempt, to route.Candidate) error {
	request := hbone.Request{Authority: to.Target.String(), Headers: a.headers()}
	var token string
	var offer *handover
	if !to.ByGateway() && p.isLocal(to.Workload) {
		token, offer = p.local.offer(to.Workload.PodUID, to.Target)
		defer p.local.withdraw(token)
		request.Headers = append(request.Headers, hbone.Header{Name: localTokenHeader, Value: token})
	}
	request.Answered = func(s *hbone.Stream) {
		a.deadline.stop()
		if offer == nil {
			p.opening(a.Connection, telemetry.MTLS, s.Counts())
		}
	}
	connected := a.phase(telemetry.PhaseConnect)
	stream, err := p.open(a, to, request)
	connected()
	if err != nil {
		if lack := a.pod.claim.Lack(); lack != nil && a.ctx.Err() != nil {
			return fmt.Errorf("%w; %w", err, lack) // that is what it has waited for
		}
		return err
	}
	defer stream.Reset()
	// The peer's proxy dials under a deadline of its own.
	a.deadline.wait(true)
	defer a.deadline.wait(false)

	if offer != nil {
		joined, err := p.awaitJoin(a, stream, offer)
		if joined || err != nil {
			return err
		}
		p.opening(a.Connection, telemetry.MTLS, stream.Counts())
	}
	result, err := stream.Relay(a.ctx, a.conn, a.replay)
	var refused *hbone.RefusedError
	if errors.As(err, &refused) {
		a.replay = refused.Replay
		return err
	}
	a.closed(result)
	return nil
}
