package proxy

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/relay"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/model"
)

// The headers of a same-node hand-over. The client's side sends a token that
// only this process knows; the server's side, when it gets the token after
// authorization, gives the application's socket to the client's side and
// answers that it did. The stream carries no data and stays open as the
// permit: when it ends, so does the joined pair.
const (
	localTokenHeader  = "tacit-local"
	localJoinedHeader = "tacit-joined"
)

// handover is one offered hand-over.
type handover struct {
	token  string
	pod    string            // UID of the one to whose application it leads
	target netip.AddrPort    // of that application
	app    chan *net.TCPConn // one, from the server's side
	counts *relay.Counts     // of the pair, for both sides
	result chan relay.Result // one, from the client's side before it ends the stream
}

// handovers are those on offer, by token.
type handovers struct {
	mu      sync.Mutex
	offered map[string]*handover
}

// offer makes a token for one application of a local pod; withdraw must follow.
func (h *handovers) offer(pod string, target netip.AddrPort) *handover {
	o := &handover{
		token: rand.Text(), pod: pod, target: target,
		app: make(chan *net.TCPConn, 1), counts: new(relay.Counts), result: make(chan relay.Result, 1),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.offered == nil {
		h.offered = map[string]*handover{}
	}
	h.offered[o.token] = o
	return o
}

// claim takes an offer, once. It is nil for a token that is not ours, or is
// for another application: such a stream is carried through the tunnel.
func (h *handovers) claim(token, pod string, target netip.AddrPort) *handover {
	if token == "" {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	o := h.offered[token]
	if o == nil || o.pod != pod || o.target != target {
		return nil
	}
	delete(h.offered, token)
	return o
}

// withdraw ends an offer that was not claimed. A socket that was given but
// not taken is closed by the server's side, whose stream ends.
func (h *handovers) withdraw(o *handover) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.offered, o.token)
}

// isLocal reports whether both ends may be joined in this process.
func (p *Proxy) isLocal(w *model.Workload) bool {
	return p.DirectLocal && w.PodUID != "" && p.localPod(w.PodUID) != nil
}

// join waits for the answer of a peer that may be this very process and
// carries the connection if it gave its application's socket. Not joined
// without an error means that the stream is to be relayed.
func (a *attempt) join() (joined bool, err error) {
	offer := a.offer
	defer a.proxy.local.withdraw(offer)
	waited := a.phase(telemetry.PhaseAnswer)
	answer, err := a.stream.Answer(a.context())
	waited()
	if err != nil {
		return false, err
	}
	if answer.Header(localJoinedHeader) == "" {
		a.proxy.opening(a.Connection, telemetry.MTLS, a.stream.Counts())
		return false, nil
	}
	// The peer may be another, and not have given anything.
	var app *net.TCPConn
	select {
	case app = <-offer.app:
	default:
		a.stream.Reset()
		return false, errNotJoined
	}
	a.proxy.opening(a.Connection, telemetry.Local, offer.counts)
	// The permit: when the server's side ends the stream, the pair ends too.
	ctx, cancel := context.WithCancelCause(a.context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-a.stream.Done():
			cancel(context.Canceled)
		case <-ctx.Done():
		}
	}()
	result := relay.Copy(ctx, a.conn, app, offer.counts)
	cancel(nil)
	<-ended
	offer.result <- result
	a.closed(result)
	a.stream.End()
	a.leave()
	return true, nil
}

var errNotJoined = errors.New("peer says that it has joined the connection, and has not")

// join is the server's side of that: it gives the application's socket
// and keeps the stream open while the pair lives.
func (p *Proxy) join(c *Connection, s *hbone.ServerStream, offer *handover, app *net.TCPConn) {
	p.opening(c, telemetry.Local, offer.counts)
	offer.app <- app
	s.Accept(hbone.Header{Name: localJoinedHeader, Value: "1"})
	select {
	case <-s.Done():
	case <-c.context().Done():
		s.Reset()
		reset(app)
	}
	select {
	case result := <-offer.result:
		c.closed(result)
		s.End()
	default: // this side ended it, or the client's vanished
		reset(app)
		c.closed(relay.Result{End: relay.Aborted, Err: c.endCause()})
	}
}
