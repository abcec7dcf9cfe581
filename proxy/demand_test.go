package proxy

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/model"
)

// No pod can take the names that others need, nor those of decisions.
func TestNamesAreShared(t *testing.T) {
	held := 0
	p := New(Config{State: state.New(), Demand: func(string) (func(), bool) {
		held++
		return func() { held-- }, true
	}})
	greedy, other := holder{share: newShare(1).names}, holder{share: newShare(1).names}
	again := holder{share: greedy.share}
	defer again.release(p)
	defer other.release(p)
	names := 0
	for ; names <= maxNames && greedy.hold(p, fmt.Sprint("/", names)); names++ {
	}
	if names != maxNamesOfPod || held != names {
		t.Errorf("a pod has %d names and holds %d, want %d", names, held, maxNamesOfPod)
	}
	if !again.hold(p, "/0") {
		t.Error("a name that the pod has counts again")
	}
	if !other.hold(p, "/other") {
		t.Error("there is none left for another pod")
	}
	if of := (holder{}); !of.hold(p, "/provider") {
		t.Error("there is none left for decisions")
	}
	greedy.release(p)
	if n := p.names.Taken(); n != 2 { // again's and the other's
		t.Errorf("%d are taken when those are given back", n)
	}
	if !greedy.hold(p, "/new") {
		t.Error("what was given back cannot be had")
	}
	greedy.release(p)
}

// asked is a control plane on demand, and what is asked of it.
type asked struct {
	*state.State
	mu   sync.Mutex
	held map[string]int // by name
	full bool
	news chan string // names that are newly held, none of which waits
}

func newAsked() *asked {
	a := &asked{State: state.New(), held: map[string]int{}, news: make(chan string, 10*maxHosts)}
	a.Apply(model.Update{OnDemand: true, AddressesComplete: true, PoliciesComplete: true})
	return a
}

func (a *asked) demand(name string) (release func(), ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.full {
		return nil, false
	}
	if a.held[name]++; a.held[name] == 1 {
		a.news <- name
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.held[name]--; a.held[name] == 0 {
			delete(a.held, name)
		}
	}, true
}

func (a *asked) names() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(a.held)), " ")
}

// called is an inbound connection of a pod that the snapshot knows, from a peer
// with an identity.
func (a *asked) called(t *testing.T) (*Proxy, *Connection) {
	t.Helper()
	a.Apply(model.Update{Workloads: []*model.Workload{{UID: "uid", Name: "client", Namespace: "mesh", TrustDomain: "td", Network: "n1", Addresses: []netip.Addr{clientAddr}}}})
	p := New(Config{State: a.State, Demand: a.demand, Recorder: telemetry.New(telemetry.Options{}), Network: "n1", MaxConnsPerPod: 4, Identities: identity.NewStore(nil)})
	p.draining = true // nothing is accepted here
	p.Add(sockets.Pod{UID: "uid", Namespace: "mesh", Name: "client", Addresses: []netip.Addr{clientAddr}}, sockets.Listeners{})
	c := p.newConnection(p.localPod("uid"), netip.AddrPortFrom(serverAddr, 40000), telemetry.Inbound)
	c.caller = &caller{peer: model.Identity{TrustDomain: "td", Namespace: "mesh", ServiceAccount: "server"}}
	c.setDestination(netip.AddrPortFrom(clientAddr, 80))
	return p, c
}

// labelled is a policy about the labels of who comes.
func labelled() *model.Policy {
	match := model.Match{SourceLabels: []model.LabelMatch{{Key: "app", Values: []model.StringMatch{{Value: "bad"}}}}}
	return &model.Policy{
		Name: "labelled", Namespace: "mesh", Scope: model.ScopeNamespace, Action: model.ActionDeny,
		Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{match}}}}},
	}
}

// A connection waits for all names that it needs, those too that the first
// answers bring, and for no more than its context.
func TestWaitsForNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsked()
		p := New(Config{State: a.State, Demand: a.demand})
		names := func(s *model.Snapshot) []string {
			if s.Heard("/1") {
				return []string{"/2", "/1"}
			}
			return []string{"/1"}
		}
		done := make(chan *model.Snapshot, 1)
		var h holder
		go func() { done <- p.hear(t.Context(), &h, names) }()
		for _, name := range []string{"/1", "/2"} {
			if got := <-a.news; got != name {
				t.Errorf("asked for %s, want %s", got, name)
			}
			synctest.Wait()
			if len(done) > 0 {
				t.Fatalf("%s was not waited for", name)
			}
			a.Apply(model.Update{Heard: []string{name}})
		}
		if s := <-done; !s.Heard("/2") || a.names() != "/1 /2" {
			t.Errorf("heard %v, held %s", s.Heard("/2"), a.names())
		}
		h.release(p)
		h.release(p) // once is enough
		if a.names() != "" {
			t.Errorf("%s is held at the end", a.names())
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if s := p.hear(ctx, &h, func(*model.Snapshot) []string { return []string{"/3"} }); s.Heard("/3") || ctx.Err() == nil {
			t.Error("an answer that never came")
		}
		h.release(p)
	})
}

// Where there is no room for a name it is looked for again.
func TestWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsked()
		a.full = true
		p := New(Config{State: a.State, Demand: a.demand})
		h := holder{share: newShare(1).names}
		done := make(chan *model.Snapshot, 1)
		go func() {
			done <- p.hear(t.Context(), &h, func(*model.Snapshot) []string { return []string{"/1"} })
		}()
		synctest.Wait()
		if n := p.names.Taken(); n != 0 {
			t.Errorf("%d are taken of which none could be had", n)
		}
		a.mu.Lock()
		a.full = false
		a.mu.Unlock()
		if <-a.news != "/1" {
			t.Error("asked for another")
		}
		a.Apply(model.Update{Heard: []string{"/1"}})
		<-done
		h.release(p)
	})
}

// Who calls is held for as long as the connection lives: a policy that comes
// later may be about its labels. That is for who has an identity, and while there
// is room.
func TestCallersOfLiveConnectionsAreHeld(t *testing.T) {
	source := model.AddressName("n1", serverAddr)
	for name, tt := range map[string]struct {
		plain, reads   bool
		taken, ofShare int
		filled         bool // while it is decided on
		during, after  string
	}{
		"with an identity":              {during: source, after: source},
		"in clear":                      {plain: true, during: source},
		"in clear, under a policy":      {plain: true, reads: true, during: source},
		"under a policy":                {reads: true, during: source, after: source},
		"without room":                  {taken: maxNames / 2},
		"without room any more":         {filled: true, during: source},
		"without room, under a policy":  {reads: true, taken: maxNames / 2, during: source, after: source},
		"without room in the share":     {ofShare: maxNamesOfPod / 2},
		"the share full, with a policy": {reads: true, ofShare: maxNamesOfPod / 2, during: source, after: source},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAsked()
			p, c := a.called(t)
			if tt.plain {
				c.caller = nil
			}
			if tt.reads {
				a.Apply(model.Update{Policies: []*model.Policy{labelled()}})
			}
			for range tt.taken {
				p.names.Take(&heldNames{}, 1)
			}
			for i := range tt.ofShare {
				c.pod.share.names.take(p.names, fmt.Sprint(i))
			}
			a.Apply(model.Update{Heard: []string{source}}) // nothing is there
			p.lookUpSource(t.Context(), c)
			if got := a.names(); got != tt.during {
				t.Errorf("held while it is decided on: %q, want %q", got, tt.during)
			}
			if tt.filled {
				for range maxNames / 2 {
					p.names.Take(&heldNames{}, 1)
				}
			}
			p.forgetSource(c)
			if got := a.names(); got != tt.after {
				t.Errorf("held after that: %q, want %q", got, tt.after)
			}
			p.end(c)
			if got := a.names(); got != "" {
				t.Errorf("held after the end: %q", got)
			}
		})
	}
}

// The decision waits for who calls only where a policy is about that.
func TestWaitsForCallersOfWhomAPolicyIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsked()
		p, c := a.called(t)
		p.lookUpSource(t.Context(), c) // does not wait
		a.Apply(model.Update{Policies: []*model.Policy{labelled()}})
		done := make(chan struct{})
		go func() { p.lookUpSource(t.Context(), c); close(done) }()
		synctest.Wait()
		select {
		case <-done:
			t.Error("it was not waited for")
		default:
		}
		a.Apply(model.Update{Heard: []string{model.AddressName("n1", serverAddr)}})
		<-done
		p.end(c)
		p.Remove("uid", true)
	})
}

// Whoever comes in clear and is denied is named, if that was asked for.
func TestDenialNamesWhoComesInClear(t *testing.T) {
	for name, tt := range map[string]struct{ asked, answered, named bool }{
		"asked for":  {true, true, true},
		"unanswered": {true, false, false},
		"not at all": {false, true, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := newAsked()
			p, c := a.called(t)
			c.caller = nil
			source := model.AddressName("n1", serverAddr)
			if tt.asked {
				c.whence.hold(p, source)
			}
			if tt.answered {
				a.Apply(model.Update{Heard: []string{source}, Workloads: []*model.Workload{{UID: "server", Name: "server", Namespace: "mesh", TrustDomain: "td", Network: "n1", Addresses: []netip.Addr{serverAddr}}}})
			}
			r, _ := c.facts(model.NewSnapshot(), time.Now())
			began := time.Now()
			p.explainSource(t.Context(), c, &r)
			if took := time.Since(began); took > explainTimeout {
				t.Errorf("%s: it took %v", name, took)
			}
			if named := r.SourceWorkload != nil; named != tt.named {
				t.Errorf("%s: named %v, want %v", name, named, tt.named)
			}
			p.end(c)
			p.Remove("uid", true)
		})
	}
}
