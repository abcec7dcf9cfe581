package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/tacit-mesh/tacit/xds/model"
)

// maxForwardsPerPod is how many queries of a pod may be under way to servers
// outside at a time. Further ones fail at once.
const maxForwardsPerPod = 256

// Event is a query that was answered, or was not.
type Event struct {
	Kind      string // of records that were asked for, such as "a"
	TCP       bool
	Forwarded bool
	// Err is why a forwarded query has no answer; nil if it has one.
	Err  error
	Took time.Duration // of a forwarded query
}

// Config is what a Server works with; all of it is required.
type Config struct {
	Zone      Zone
	Forwarder *Forwarder
	// Mesh is the newest snapshot, and who the pod is in it. Without one that is
	// complete it is not ok, and everything is forwarded.
	Mesh func() (s *model.Snapshot, c Client, ok bool)
	// Dial connects from inside the pod to the server that it has chosen.
	Dial func(context.Context, netip.AddrPort) (*net.TCPConn, error)
	// Observe is told about every query; it must not wait.
	Observe func(Event)
}

// Server answers the queries of one pod.
type Server struct {
	Config
	slots chan struct{}
}

// NewServer makes a server; it does nothing by itself.
func NewServer(c Config) *Server {
	return &Server{Config: c, slots: make(chan struct{}, maxForwardsPerPod)}
}

// own answers a query that needs nobody else; done is false of one that is to
// be forwarded. No answer at all is nil.
func (s *Server) own(raw []byte, tcp bool) (q query, out []byte, done bool) {
	q, err := parse(raw)
	switch {
	case errors.Is(err, errIgnored):
		return q, nil, true
	case err != nil:
		return q, failure(q, mdns.RcodeFormatError), true
	case !q.aboutAddresses():
		return q, nil, false
	}
	snapshot, client, ok := s.Mesh()
	if !ok {
		return q, nil, false
	}
	f, ok := s.Zone.lookup(snapshot, client, canonical(q.name), q.kind == mdns.TypeAAAA)
	if !ok {
		return q, nil, false
	}
	s.Observe(Event{Kind: q.kindLabel(), TCP: tcp})
	return q, answer(q, f, tcp), true
}

// forward asks somebody else, within the pod's share, and turns a failure into
// an answer that says so.
func (s *Server) forward(q query, tcp bool, ask func() ([]byte, error)) []byte {
	start := time.Now()
	var out []byte
	err := errBusy
	if take(s.slots) {
		out, err = ask()
		<-s.slots
	}
	s.Observe(Event{Kind: q.kindLabel(), TCP: tcp, Forwarded: true, Err: err, Took: time.Since(start)})
	if err != nil {
		return failure(q, mdns.RcodeServerFailure)
	}
	return out
}
