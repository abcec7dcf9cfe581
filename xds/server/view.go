package server

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/xds/wire"
)

// A stream takes both kinds, but asks for them one after the other. What
// would have to wait for the other kind waits this long for it to be asked
// for, and then goes out alone.
const bothKindsGrace = 2 * time.Second

const (
	// maxNames bounds how many names one stream may ask for.
	maxNames = 50_000
	// maxUnacknowledged bounds the responses of one kind under way; those of
	// both kinds fit into the channel that go-control-plane takes them from.
	maxUnacknowledged = 8
	// maxLag is how many generations a slow stream may be behind before what
	// it missed is merged into one.
	maxLag = 256
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
	at        *state // all of it has been sent; nil at first
	policies  subscription
	addresses subscription
}

// subscription is one kind on one stream.
type subscription struct {
	asked          bool
	watch          *watch          // nil while the names asked for are being changed, and at the end
	sent           *resources      // what the proxy has once all has arrived
	told           map[string]bool // names without a resource that the proxy was told of
	unacknowledged int
	// answered says that there was a response, which may be empty: it tells
	// the proxy that it has everything.
	answered bool
	// generation is that of the state whose changed resources were all sent.
	generation uint64
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
	sub.ask(names.ReturnedResources())
	if req.GetResponseNonce() != "" && sub.unacknowledged > 0 {
		sub.unacknowledged--
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

// advance takes the stream as far as it goes now, one generation after the
// other.
func (v *view) advance() {
	for {
		s := v.target()
		if !s.ready() || !v.bring(s) {
			return
		}
		v.at = s
		if s.next.Load() == nil {
			return
		}
	}
}

// target is the generation to send next: the newest, for a stream that begins
// or is far behind.
func (v *view) target() *state {
	newest := v.server.current.Load()
	if v.at == nil || newest.generation-v.at.generation > maxLag {
		return newest
	}
	if next := v.at.next.Load(); next != nil {
		return next
	}
	return v.at
}

// bring sends what may be sent now of one generation: changed policies first,
// then addresses, and last the removal of policies, which no address sent so
// far names any more. It reports whether that was all.
func (v *view) bring(s *state) bool {
	v.sendPolicies(s)
	v.sendAddresses(s)
	v.sendPolicies(s)
	return (v.policies.asked || v.addresses.asked) &&
		(!v.policies.asked || v.policies.answered && v.policies.sent == s.policies.all) &&
		(!v.addresses.asked || v.addresses.upTo(s.generation))
}

func (v *view) sendPolicies(s *state) {
	sub := &v.policies
	if !sub.asked {
		return
	}
	next := s.policies.all
	changed, removed := difference(sub.sent, &s.policies)
	if !v.addresses.upTo(s.generation) && (v.addresses.asked || !v.graceOver) {
		for _, name := range removed {
			old, _ := sub.sent.Get(name)
			next = next.Set(name, old)
		}
		removed = nil
	}
	if sub.send(s, changed, removed) {
		sub.sent, sub.generation = next, s.generation
	}
}

func (v *view) sendAddresses(s *state) {
	sub := &v.addresses
	if sub.watch == nil || !v.policies.upTo(s.generation) && (v.policies.asked || !v.graceOver) {
		return
	}
	wanted, told := &s.addresses, map[string]bool(nil)
	var unknown []string
	if !sub.watch.names.IsWildcard() {
		wanted = &set{}
		wanted.all, told = s.demanded(sub.watch.names.SubscribedResources(), v.node)
		unknown = sub.news(told)
	}
	changed, removed := difference(sub.sent, wanted)
	if sub.send(s, changed, slices.Concat(removed, unknown)) {
		sub.sent, sub.told, sub.generation = wanted.all, told, s.generation
	}
}

// upTo reports whether all that changed up to a generation was sent.
func (s *subscription) upTo(generation uint64) bool {
	return s.answered && s.generation == generation
}

// news are the names without a resource that the proxy has not been told of.
func (s *subscription) news(absent map[string]bool) (out []string) {
	for name := range absent {
		if !s.told[name] {
			out = append(out, name)
		}
	}
	return out
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

// send answers the watch if there is anything to say, and reports whether the
// proxy has been told all of it.
func (s *subscription) send(st *state, changed []*discovery.Resource, removed []string) bool {
	if len(changed)+len(removed) == 0 && s.answered {
		return true
	}
	if s.watch == nil || s.unacknowledged == maxUnacknowledged {
		return false
	}
	changed, removed = slices.Clone(changed), slices.Clone(removed)
	slices.SortFunc(changed, func(a, b *discovery.Resource) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(removed)
	response := &cache.DeltaPassthroughResponse{
		DeltaRequest:   s.watch.request,
		NextVersionMap: map[string]string{}, // the view keeps its own account
		DeltaDiscoveryResponse: &discovery.DeltaDiscoveryResponse{
			TypeUrl:           s.watch.request.GetTypeUrl(),
			SystemVersionInfo: strconv.FormatUint(st.generation, 10),
			Resources:         changed,
			RemovedResources:  removed,
		},
	}
	select {
	case s.watch.out <- response:
	default: // cannot be: it has room for more than may be under way
		return false
	}
	s.unacknowledged++
	s.answered = true
	return true
}
