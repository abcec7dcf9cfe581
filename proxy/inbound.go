package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/relay"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/model"
)

// The statuses that answer a CONNECT, as Istio ambient uses them.
const (
	statusBadRequest  = 400
	statusDenied      = 401
	statusUnavailable = 503
)

// inbound serves one mTLS connection of a peer's proxy to a local pod.
func (p *Proxy) inbound(pod *pod, conn *net.TCPConn) {
	defer p.carried(pod, pod.share.inbound)
	defer reset(conn)
	stop := context.AfterFunc(pod.ctx, func() { reset(conn) })
	defer stop()
	from := caller{addr: addrPort(conn.RemoteAddr()), arrived: addrPort(conn.LocalAddr())}
	if !pod.share.handshakes.Take(from.addr.Addr(), 1) {
		p.Recorder.HandshakeFailed(telemetry.Inbound, from.addr, from.arrived, "too_many", errHandshakes)
		return
	}

	began := time.Now()
	tlsConn, own, err := p.handshake(pod, conn)
	if err != nil {
		p.Recorder.HandshakeFailed(telemetry.Inbound, from.addr, from.arrived, identity.FailureReason(err), err)
		letRead(conn)
	}
	pod.share.handshakes.Give(from.addr.Addr(), 1)
	if err != nil {
		return
	}
	from.peer, _, err = identity.PeerIdentity(tlsConn.ConnectionState())
	if err != nil {
		p.Recorder.HandshakeFailed(telemetry.Inbound, from.addr, from.arrived, identity.FailureReason(err), err)
		return
	}
	from.takenBack = p.revocation(own, tlsConn.ConnectionState().PeerCertificates)
	var once sync.Once
	from.handshake = func() (d time.Duration) { // belongs to the first stream
		once.Do(func() { d = time.Since(began) })
		return d
	}
	config := hbone.ServerConfig{NotAfter: own.NotAfter(), Grace: p.CertificateGrace, Budget: pod.budget, Drain: p.drained, Parking: p.Parking}
	err = hbone.Serve(pod.ctx, tlsConn, config, func(ctx context.Context, s *hbone.ServerStream) {
		p.serve(pod, &from, s)
	})
	p.reportCut(from, err)
}

// letRead gives a peer a moment to read why its handshake failed. It has sent its
// first request already, and a reset in answer to that could be there before: the
// peer would not know whether the request was served, and so whether it may be
// repeated.
func letRead(conn *net.TCPConn) {
	if conn.CloseWrite() != nil || conn.SetReadDeadline(time.Now().Add(time.Second)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1<<17)) // a first window and more
}

var errHandshakes = errors.New("too many handshakes under way from this address, or to this pod")

// caller is the verified other end of an mTLS connection.
type caller struct {
	addr, arrived netip.AddrPort
	peer          model.Identity
	// takenBack asks whether the certificate has been revoked since the handshake;
	// nil if that cannot be.
	takenBack func() bool
	handshake func() time.Duration
}

// handshake authenticates both ends, under a deadline. It also returns what the
// pod has proven itself with.
func (p *Proxy) handshake(pod *pod, conn *net.TCPConn) (*tls.Conn, *identity.Material, error) {
	ctx, cancel := context.WithTimeout(pod.ctx, handshakeTimeout)
	defer cancel()
	wire, err := hbone.NewWire(conn)
	if err != nil {
		return nil, nil, err
	}
	var own *identity.Material
	config := identity.ServerConfig(func() (*identity.Material, error) {
		m, err := pod.claim.Get(ctx)
		if err == nil {
			own = m
		}
		return m, err
	}, identity.WithRevocations(p.Revocations), p.trustDomains(ctx, pod))
	config.DynamicRecordSizingDisabled = true // full records; see hbone.Serve
	tlsConn := tls.Server(wire, config)
	err = tlsConn.HandshakeContext(ctx)
	return tlsConn, own, err
}

// trustDomains has a handshake of a pod know what else its trust domain is
// called, by the control plane's first word on the pod, which it waits for.
func (p *Proxy) trustDomains(ctx context.Context, pod *pod) identity.Option {
	return identity.WithTrustDomains(func(name string) (bool, error) {
		s, err := p.State.Wait(ctx, func(s *model.Snapshot) bool { return workloadOf(s, pod) != nil })
		if err != nil {
			return false, fmt.Errorf("whether trust domain %q is the pod's own is not known: %w", name, err)
		}
		return workloadOf(s, pod).InTrustDomain(name), nil
	})
}

// serve carries one stream to the application. Like outbound it keeps little on
// the stack meanwhile, and no goroutine for an idle one.
func (p *Proxy) serve(pod *pod, from *caller, s *hbone.ServerStream) {
	c := p.newConnection(pod, from.addr, telemetry.Inbound)
	app, offer := p.admit(c, from, s)
	switch {
	case app == nil:
	case offer != nil:
		p.join(c, s, offer, app)
	case c.requests != nil:
		c.closed(p.serveStream(c, s, app))
	default:
		c.carriedBy(s)
		s.Relay(app, func(r relay.Result) {
			c.closed(r)
			p.end(c)
		})
		return
	}
	p.end(c)
}

// admit connects an allowed stream to the application, takes a place for it,
// and accepts it. If a local pod is to be joined with that, it returns the
// offer instead. Without an application the stream was refused.
func (p *Proxy) admit(c *Connection, from *caller, s *hbone.ServerStream) (app *net.TCPConn, offer *handover) {
	c.caller, c.working = from, s.Working
	c.traced(s.Header)
	c.record.Security = telemetry.MTLS
	c.record.Source.Identity = from.peer
	c.record.Phases[telemetry.PhaseHandshake] = from.handshake()

	if !take(c.pod.share.inbound) {
		c.fail("too_many_connections", errConnections)
		s.Refuse(statusUnavailable)
		return nil, nil
	}
	c.placed = true
	to, err := p.aim(c, s.Authority(), from.arrived.Addr())
	switch {
	case errors.Is(err, errNotServed):
		c.fail("no_such_service", err)
		s.Refuse(statusUnavailable)
		return nil, nil
	case err != nil:
		c.fail("bad_request", err)
		s.Refuse(statusBadRequest)
		return nil, nil
	}
	c.setDestination(to.dst)
	if !p.authorize(c) {
		s.Refuse(statusDenied)
		return nil, nil
	}
	app, err = p.dial(c, to)
	switch {
	case err == nil:
	case c.revoked():
		s.Refuse(statusDenied)
		return nil, nil
	default:
		c.fail("application_unavailable", err)
		s.Refuse(statusUnavailable)
		return nil, nil
	}
	if c.requests == nil {
		offer = p.local.claim(s.Header(localTokenHeader), c.pod.UID, to.dst)
	}
	if offer == nil {
		s.Accept()
		p.opening(c, telemetry.MTLS, s.Counts())
	}
	return app, offer
}

var errConnections = errors.New("the pod has as many connections as its share allows")

// reportCut tells of a peer that was cut off, unless its end was ordinary.
func (p *Proxy) reportCut(from caller, err error) {
	var end *hbone.ConnError
	if !errors.As(err, &end) {
		return
	}
	switch end.Cause {
	case hbone.CauseClosed, hbone.CauseLost, hbone.CauseCanceled, hbone.CauseCertificate:
	default:
		p.Recorder.PeerCut(telemetry.Inbound, from.addr, from.arrived, string(end.Cause), err)
	}
}

// authorize decides in one snapshot, the connection being in the table of
// live ones: from here on a change of policy ends it. Before that it waits for
// the control plane's first word on the pod and its policies, outside of the
// table, whose next look would deny for the lack of it at once.
func (p *Proxy) authorize(c *Connection) (allowed bool) {
	defer c.phase(telemetry.PhaseAuthorize)()
	ctx, cancel := context.WithTimeout(c.context(), decisionTimeout)
	defer cancel()
	_, _ = p.State.Wait(ctx, c.known)
	p.lookUpSource(ctx, c)
	defer p.forgetSource(c)
	p.conns.Add(c)
	d, request := p.coverage(c)
	if d.Allowed {
		d = p.limited(ctx, c.pod, d, &request, model.LimitConnections)
	}
	if d.Allowed && c.requests == nil {
		d = p.limited(ctx, c.pod, d, &request, model.LimitBytes)
	}
	if !d.Allowed {
		p.explainSource(ctx, c, &request)
	}
	c.judged(d, request)
	if !d.Allowed {
		c.deny(d)
	}
	return d.Allowed
}

// dialApp connects to the application from the client's own address, unless
// the pod calls itself.
func (p *Proxy) dialApp(c *Connection) (*net.TCPConn, error) {
	defer c.phase(telemetry.PhaseDial)()
	ctx, cancel := p.withTimeoutAnd(c.context(), dialTimeout, c.working)
	defer cancel()
	src := c.source().Addr()
	if src == c.original.Addr() || src.Is4() != c.original.Addr().Is4() {
		src = netip.Addr{}
	}
	app, err := p.Sockets.Dial(ctx, c.pod.UID, src, c.original)
	if err != nil {
		return nil, fmt.Errorf("connect to the application at %v: %w", c.original, err)
	}
	if c.endCause() != nil { // denied meanwhile, or the pod is gone: nothing may reach it
		reset(app)
		return nil, c.endCause()
	}
	return app, nil
}
