package server

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/xds/wire"
)

// A stream takes both kinds, but asks for them one after the other. Nothing
// goes out before both are asked for, or this time is over.
const bothKindsGrace = 2 * time.Second

const (
	// maxNames bounds how many names one stream may ask for.
	maxNames = 50_000
	// maxUnacknowledged bounds the responses of one kind under way; those of
	// both kinds fit into the channel that go-control-plane takes them from.
	maxUnacknowledged = 8
)

// view is what one stream sees. It is the cache behind go-control-plane's
// server, which opens a watch for each kind, and a new one in its place with
// every request. All that it asks for goes out as soon as it may.
type view struct {
	server *Server
	node   string
	log    *zap.Logger

	mu        sync.Mutex
	graceOver bool
	known     bool   // the proxy has said what it is
	announced string // the extensions that it understands, in the form of wire.Extensions
	dialect   wire.Dialect
	open      *state // the generation of which the proxy was sent only a part; nil if none
	policies  subscription
	addresses subscription
}

// subscription is one kind on one stream.
type subscription struct {
	asked          bool
	watch          *watch     // nil while the names asked for are being changed, and at the end
	sent           *resources // what the proxy has once all has arrived
	demands        *demands   // nil: everything is wanted
	unacknowledged int
	// answered says that there was a response, which may be empty: it tells
	// the proxy that it has everything.
	answered bool
}

type watch struct {
	request *cache.DeltaRequest
	names   cache.Subscription
	out     chan cache.DeltaResponse
}

// CreateWatch refuses the protocol's older form.
func (v *view) CreateWatch(*cache.Request, cache.Subscription, chan cache.Response) (func(), error) {
	return nil, errors.New("only the incremental protocol is served")
}

// CreateDeltaWatch takes a request, which may be an acknowledgement.
func (v *view) CreateDeltaWatch(req *cache.DeltaRequest, names cache.Subscription, out chan cache.DeltaResponse) (func(), error) {
	if len(names.SubscribedResources()) > maxNames {
		return nil, status.Errorf(codes.ResourceExhausted, "%d names asked for, the limit is %d", len(names.SubscribedResources()), maxNames)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	var sub *subscription
	switch req.GetTypeUrl() {
	case wire.AuthorizationType:
		sub = &v.policies
	case wire.AddressType:
		sub = &v.addresses
	default:
		v.log.Info("proxy asked for a type that is not served", zap.String("type", req.GetTypeUrl()))
		return nil, nil
	}
	v.identify(req.GetNode())
	sub.ask(names.ReturnedResources())
	if req.GetResponseNonce() != "" && sub.unacknowledged > 0 {
		sub.unacknowledged--
	}
	if sub == &v.addresses {
		sub.demand(v.node, req, names)
	}
	w := &watch{req, names, out}
	sub.watch = w
	v.advance()
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if sub.watch == w {
			sub.watch = nil
		}
	}, nil
}

// demand takes over which names are asked for.
func (s *subscription) demand(node string, req *cache.DeltaRequest, names cache.Subscription) {
	switch {
	case names.IsWildcard():
		s.demands = nil
	case s.demands == nil:
		s.demands = newDemands(node, names.SubscribedResources())
	default:
		s.demands.ask(req.GetResourceNamesSubscribe(), req.GetResourceNamesUnsubscribe())
	}
}

// identify reads what a stream's first request says of the proxy.
func (v *view) identify(node *core.Node) {
	if v.known {
		return
	}
	v.known = true
	value, aware := node.GetMetadata().GetFields()[wire.ExtensionsKey]
	v.announced = value.GetStringValue()
	v.dialect = wire.DialectOf(v.announced, aware)
	if v.announced != wire.Extensions() {
		v.log.Info("proxy of another version, or of another kind", zap.String("id", node.GetId()), zap.String("extensions", v.announced))
	}
	v.server.nodesChanged()
}

// ask takes over what the protocol's bookkeeping knows that the view does
// not: on the first request the versions that the proxy already has; later,
// names that it wants to hear about again.
func (s *subscription) ask(known map[string]string) {
	if s.sent == nil {
		s.sent = newResources()
		for name, version := range known {
			s.sent = s.sent.Set(name, &discovery.Resource{Name: name, Version: version})
		}
	}
	for name, version := range known {
		if version == "" {
			s.sent = s.sent.Set(name, &discovery.Resource{Name: name})
		}
	}
	s.asked = true
}

func (v *view) endGrace() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.graceOver = true
	v.advance()
}

// wake is called on a new state.
func (v *view) wake() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.advance()
}

// advance takes the stream as far as it goes now: to the newest generation,
// by way of one that it has in part.
func (v *view) advance() {
	for v.mayBegin() {
		s := v.open
		if s == nil {
			s = v.server.current.Load()
		}
		if !s.ready() || !v.bring(s) || s == v.server.current.Load() {
			return
		}
	}
}

func (v *view) mayBegin() bool {
	p, a := &v.policies, &v.addresses
	if p.asked && p.watch == nil || a.asked && a.watch == nil {
		return false
	}
	return p.asked && a.asked || v.graceOver && (p.asked || a.asked)
}

// bring sends what is left to send of one generation, and reports whether that
// was all.
func (v *view) bring(s *state) bool {
	steps := v.steps(s)
	if len(steps) == 0 && v.open != nil { // what was left was about names that have been given up
		steps = []step{{sub: &v.policies, sent: v.policies.sent}}
	}
	for i, next := range steps {
		more := i < len(steps)-1
		if !next.send(s.generation, more) {
			return false
		}
		v.open = nil
		if more {
			v.open = s
		}
	}
	return true
}

// steps are the responses that are left to send of one generation: policies
// that come or change, then addresses, and last, as no address names them any
// more, policies that go.
func (v *view) steps(s *state) (out []step) {
	p := &v.policies
	var coming, going step
	if p.asked {
		wanted := &s.policies[v.dialect]
		changed, removed := difference(p.sent, wanted)
		going = step{sub: p, removed: removed, sent: wanted.all}
		coming = step{sub: p, changed: changed, sent: wanted.all}
		for _, name := range removed {
			old, _ := p.sent.Get(name)
			coming.sent = coming.sent.Set(name, old)
		}
		if !coming.isEmpty() || !p.answered {
			out = append(out, coming)
		}
	}
	if a := &v.addresses; a.asked {
		if addresses := v.addressStep(s); !addresses.isEmpty() || !a.answered {
			out = append(out, addresses)
		} else {
			a.sent = addresses.sent
		}
	}
	if !going.isEmpty() {
		out = append(out, going)
	}
	return out
}

func (v *view) addressStep(s *state) step {
	sub := &v.addresses
	d := sub.demands
	if d == nil {
		changed, removed := difference(sub.sent, &s.addresses)
		return step{sub: sub, changed: changed, removed: removed, sent: s.addresses.all}
	}
	d.bring(s)
	changed, removed := d.answers(difference(sub.sent, &d.wanted))
	return step{sub: sub, changed: changed, removed: removed, sent: d.wanted.all, answers: d}
}

// difference is what leads from the resources sent to those wanted.
func difference(sent *resources, wanted *set) (changed []*discovery.Resource, removed []string) {
	switch sent {
	case wanted.all:
		return nil, nil
	case wanted.before:
		return wanted.changed, wanted.removed
	}
	for it := wanted.all.Iterator(); !it.Done(); {
		name, r, _ := it.Next()
		if old, ok := sent.Get(name); !ok || old.Version != r.Version {
			changed = append(changed, r)
		}
	}
	for it := sent.Iterator(); !it.Done(); {
		name, _, _ := it.Next()
		if _, ok := wanted.all.Get(name); !ok {
			removed = append(removed, name)
		}
	}
	return changed, removed
}

// step is one response, and what the proxy has once it has arrived.
type step struct {
	sub     *subscription
	changed []*discovery.Resource
	removed []string
	sent    *resources
	answers *demands // that are answered with it; nil: none
}

func (s *step) isEmpty() bool { return len(s.changed)+len(s.removed) == 0 }

// send reports whether the response is on its way: the proxy may first have to
// acknowledge others.
func (s *step) send(generation uint64, more bool) bool {
	sub := s.sub
	if sub.unacknowledged == maxUnacknowledged {
		return false
	}
	changed, removed := slices.Clone(s.changed), slices.Clone(s.removed)
	slices.SortFunc(changed, func(a, b *discovery.Resource) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(removed)
	response := &cache.DeltaPassthroughResponse{
		DeltaRequest:   sub.watch.request,
		NextVersionMap: map[string]string{}, // the view keeps its own account
		DeltaDiscoveryResponse: &discovery.DeltaDiscoveryResponse{
			TypeUrl:           sub.watch.request.GetTypeUrl(),
			SystemVersionInfo: wire.VersionInfo(generation, more),
			Resources:         changed,
			RemovedResources:  removed,
		},
	}
	select {
	case sub.watch.out <- response:
	default: // cannot be: it has room for more than may be under way
		return false
	}
	sub.unacknowledged++
	sub.answered = true
	sub.sent = s.sent
	if s.answers != nil {
		s.answers.answered()
	}
	return true
}
