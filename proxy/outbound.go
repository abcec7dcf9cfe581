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

	"github.com/tacit-mesh/tacit/identity"
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

// outbound carries one connection that a local pod opened. Bytes may move for
// days, so what is on the stack by then is little: whatever takes more room
// has returned. While none move there is no stack either: a stream that has
// been idle ends in another goroutine.
func (p *Proxy) outbound(pod *pod, app *net.TCPConn) {
	a := &attempt{Connection: p.begin(pod, app, telemetry.Outbound)}
	if a.start() {
		for a.connect() {
			err := a.carry()
			if err == nil {
				return // it has ended, or is idle
			}
			if a.settled(err) {
				break
			}
		}
	}
	a.leave()
}

// attempt is an outbound connection on its way to someone who answers.
type attempt struct {
	*Connection
	deadline *deadline // for finding someone; stopped by the first answer
	route    route.Route
	seed     uint64
	ahead    []route.Candidate // to be tried next
	tried    int
	again    bool          // whether trying all of them again may help
	pause    time.Duration // until then
	replay   *hbone.Replay // what the application has sent meanwhile

	// Of the candidate that is tried now.
	tunneled bool
	stream   *hbone.Stream // if it is; else
	server   *net.TCPConn
	offer    *handover // to join the connection within this process
}

// start learns where the application meant to go.
func (a *attempt) start() bool {
	dst, err := sockets.OriginalDst(a.conn)
	if err == nil && dst == addrPort(a.conn.LocalAddr()) {
		// To itself it would go on for ever.
		err = fmt.Errorf("connection to %v, the proxy itself, that was not redirected", dst)
	}
	if err != nil {
		a.fail("no_original_destination", err)
		return false
	}
	a.setDestination(dst)
	a.deadline = newDeadline(a.proxy.Sockets.Absence, connectTimeout, func() { a.cancel(errNoAnswer) }, nil)
	return true
}

// Time in which an agent, here or there, is away or a peer says that it is at work
// is not counted.
var errNoAnswer = fmt.Errorf("no endpoint has answered in %v of waiting for none but it", connectTimeout)

// connect tries candidates until a connection or stream to one is open, and
// reports whether there is one.
func (a *attempt) connect() bool {
	for {
		to, ok := a.next()
		if !ok {
			return false
		}
		a.setCandidate(to)
		err := a.open(to)
		if err == nil {
			return true
		}
		if a.settled(err) {
			return false
		}
	}
}

// next is the candidate to be tried.
func (a *attempt) next() (to route.Candidate, ok bool) {
	if len(a.ahead) == 0 {
		a.lookAhead()
	}
	if len(a.ahead) == 0 && !a.beginAnew() {
		return to, false
	}
	if to, a.ahead = a.ahead[0], a.ahead[1:]; len(a.ahead) == 0 {
		a.ahead = nil // which would outlast its use
	}
	a.tried++
	return to, true
}

// beginAnew looks for a route. When all candidates of one have been tried, and
// that may help, it pauses before.
func (a *attempt) beginAnew() bool {
	if a.tried > 0 && !a.rest() {
		return false
	}
	r, err := a.proxy.resolve(a.context(), a.Connection)
	if err != nil {
		a.fail("no_route", err)
		return false
	}
	a.route, a.seed, a.tried, a.again = r, rand.Uint64(), 0, false
	if a.lookAhead(); len(a.ahead) == 0 {
		a.fail("no_route", fmt.Errorf("no route to %v", a.original))
		return false
	}
	return true
}

// lookAhead takes the next candidates from the route: first one, which most
// connections take, then as many again as were tried.
func (a *attempt) lookAhead() {
	i := 0
	for to := range a.route.Candidates(a.seed) {
		if i++; i > a.tried {
			a.ahead = append(a.ahead, to)
		}
		if i >= 2*a.tried && i > a.tried {
			return
		}
	}
}

// rest waits before all candidates are tried again, if that may help.
func (a *attempt) rest() bool {
	if !a.again {
		return false
	}
	a.pause = min(max(2*a.pause, retryFirst), retryMost)
	select {
	case <-time.After(a.pause):
		return true
	case <-a.context().Done():
		return false
	}
}

// settled reports whether nothing more is to be tried, as nobody will carry the
// connection.
func (a *attempt) settled(err error) bool {
	var refused *hbone.RefusedError
	switch {
	case errors.As(err, &refused) && refused.Status == statusDenied:
		a.deniedByPeer(err) // and not to be tried elsewhere
		return true
	case refused != nil && !refused.Retryable():
		a.fail("refused_by_peer", err)
		return true
	}
	a.fail("connect_failed", err)
	a.forsake()
	a.again = a.again || a.tunneled && peerAway(err)
	return a.endCause() != nil
}

// resolve decides where the connection may go, in one snapshot. It waits for
// the first full list of workloads, and for the pod's own where that says the
// network, and for the answer where the destination has to be asked for: what is
// merely not known yet must not leave in clear.
func (p *Proxy) resolve(ctx context.Context, c *Connection) (route.Route, error) {
	defer c.phase(telemetry.PhaseResolve)()
	wait, cancel := context.WithTimeout(ctx, decisionTimeout)
	defer cancel()
	// Without it Resolve refuses, and says that.
	snapshot, _ := p.State.Wait(wait, func(s *model.Snapshot) bool { return placed(s, c.pod) })
	if snapshot.AddressesReady() && !placed(snapshot, c.pod) {
		return route.Route{}, unplaced(c.pod)
	}
	if p.Demand != nil {
		snapshot = p.hear(wait, c.held, func(s *model.Snapshot) []string { return route.Names(s, p.sourceIn(s, c), c.original) })
	}
	source := p.sourceIn(snapshot, c)
	r := route.Resolve(snapshot, source, c.original)
	c.setRoute(source.Workload, r)
	if r.Refusal != route.NotRefused {
		return r, fmt.Errorf("no route to %v: %v", c.original, r.Refusal)
	}
	return r, nil
}

// peerAway reports whether the peer's proxy may be back in a moment: it refused
// the connection, or was lost before it had taken anything. So may the agent of
// this node, for which another connection may have waited until its own deadline,
// and the successor of a certificate that ended meanwhile.
func peerAway(err error) bool {
	var refused *hbone.RefusedError
	if errors.As(err, &refused) {
		return refused.Status == 0
	}
	if identity.HasEnded(err) {
		return true
	}
	for _, passing := range []error{hbone.ErrCertificateEnded, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, io.EOF, sockets.ErrNoSocket} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// open opens a stream to a candidate, or a connection in plain TCP.
func (a *attempt) open(to route.Candidate) error {
	defer a.phase(telemetry.PhaseConnect)()
	if a.tunneled = to.Means == route.HBONE; a.tunneled {
		return a.openStream(to)
	}
	server, err := a.proxy.Sockets.Dial(a.context(), a.pod.UID, a.sourceFor(to.Target), to.Target)
	if err != nil {
		return fmt.Errorf("connect to %v: %w", to.Target, err)
	}
	a.server = server
	return nil
}

// forsake gives up the candidate that is tried.
func (a *attempt) forsake() {
	if a.stream != nil {
		a.stream.Reset()
		a.deadline.wait(false)
	}
	a.stream, a.server, a.offer = nil, nil, nil
}

// leave ends what the attempt has begun, and the connection.
func (a *attempt) leave() {
	a.forsake()
	if a.deadline != nil {
		a.deadline.stop()
	}
	a.Connection.leave()
}

// leave ends an outbound connection.
func (c *Connection) leave() {
	c.proxy.end(c)
	c.proxy.carried(c.pod, c.pod.share.outbound)
}

// openStream opens one, with the offer to join the connection within this
// process if both ends are on this node.
func (a *attempt) openStream(to route.Candidate) (err error) {
	request := hbone.Request{Authority: to.Target.String(), Headers: a.headers()}
	if a.replay == nil && !to.ByGateway() && a.proxy.isLocal(to.Workload) {
		a.offer = a.proxy.local.offer(to.Workload.PodUID, to.Target)
		request.Headers = append(request.Headers, hbone.Header{Name: localTokenHeader, Value: a.offer.token})
	}
	offered := a.offer != nil
	request.Answered = func(s *hbone.Stream) {
		a.deadline.stop()
		if !offered {
			a.proxy.opening(a.Connection, telemetry.MTLS, s.Counts())
		}
	}
	request.Working = func() { a.deadline.wait(true) }
	a.stream, err = a.proxy.open(a, to, request)
	if err == nil {
		return nil
	}
	if a.offer != nil {
		a.proxy.local.withdraw(a.offer)
	}
	if lack := a.pod.claim.Lack(); lack != nil && a.endCause() != nil {
		return fmt.Errorf("%w; %w", err, lack) // that is what it has waited for
	}
	return err
}

// carry moves the connection's bytes. In a stream they go out before the
// answer; what was sent by then is kept for the next candidate. Without an
// error somebody has carried them: the attempt is left with the last of them.
func (a *attempt) carry() error {
	if a.stream == nil {
		a.carryPlain()
		a.leave()
		return nil
	}
	if a.offer != nil {
		if joined, err := a.join(); joined || err != nil {
			return err
		}
	}
	return a.refused(a.relay(a.Connection))
}

// relay leaves the connection once its bytes are carried. As they may move for
// days, the attempt is not kept until then, nor, by the connection, the socket.
func (a *attempt) relay(c *Connection) error {
	app := c.conn
	c.conn = nil // which is the stream's to close
	c.carriedBy(a.stream)
	err := a.stream.Relay(app, a.replay, func(r relay.Result) {
		c.closed(r)
		c.leave()
	})
	if err != nil {
		c.conn = app
		c.wait()
		return err
	}
	a.deadline.stop() // which an answer has done, unless there was none
	return nil
}

// refused notes what a stream that was refused has taken from the application.
//
//go:noinline // carry's own stack is to stay small
func (a *attempt) refused(err error) error {
	var refused *hbone.RefusedError
	if errors.As(err, &refused) {
		a.replay = refused.Replay
	}
	return err
}

func (a *attempt) carryPlain() {
	a.deadline.stop()
	a.route, a.ahead = route.Route{}, nil // with the snapshot that they know
	counts := new(relay.Counts)
	a.proxy.opening(a.Connection, a.record.Security, counts)
	if err := a.resend(counts); err != nil {
		reset(a.server)
		a.closed(relay.Result{End: relay.ResetByPeer, Err: err})
		return
	}
	a.closed(relay.Copy(a.context(), a.conn, a.server, counts))
}

// resend gives a server in plain TCP what a stream that was refused has taken
// from the application. Its FIN is read from the application once more.
func (a *attempt) resend(counts *relay.Counts) error {
	if a.replay == nil || len(a.replay.Data) == 0 {
		return nil
	}
	stop := context.AfterFunc(a.context(), func() { reset(a.server) })
	defer stop()
	n, err := a.server.Write(a.replay.Data)
	counts.Sent.Add(int64(n))
	a.replay = nil
	return err
}
