package ca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/xds/model"
)

// memory is a Store that several authorities may share.
type memory struct {
	mu      sync.Mutex
	state   State
	request string
	// published is the status that people see.
	published []byte
	broken    error
	saves     int
}

func (m *memory) Load(context.Context) (*State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	state := m.state
	return &state, m.broken
}

func (m *memory) Save(_ context.Context, before, next *State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.broken != nil:
		return m.broken
	case !m.state.Equal(before):
		return ErrChanged
	}
	m.state = *next
	m.saves++
	return nil
}

func (m *memory) Requested(context.Context) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.request, m.broken
}

func (m *memory) Published(context.Context) (Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return PublishedStatus(m.published), m.broken
}

// publish tells people what the authority is, as tacitd does.
func (m *memory) publish(t *testing.T, a *Authority) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.published = must(json.Marshal(a.Status()))
}

// clock is set by tests and read by authorities.
type clock struct{ at time.Time }

const (
	life   = time.Hour
	settle = 10 * time.Minute
	phase  = life + settle
)

// replica opens the authority of a store by a clock.
func replica(t *testing.T, store Store, c *clock) *Authority {
	t.Helper()
	a, err := New(t.Context(), store, Config{TrustDomain: "cluster.local", MaxTTL: life, Settle: settle, Interval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	a.now = func() time.Time { return c.at }
	return a
}

func newMemory(t *testing.T) (*memory, *clock) {
	t.Helper()
	key, root, err := Generate("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	return &memory{state: State{Key: key, Chain: root, Roots: root}}, &clock{time.Now().Truncate(time.Second)}
}

// issue gives a workload what the certificate service would give it now.
func issue(t *testing.T, a *Authority) *identity.Material {
	t.Helper()
	key := must(parseKey(must(newKey())))
	i := a.issuer()
	leaf, err := i.sign(workload(model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}), key.Public(), life, a.now())
	if err != nil {
		t.Fatal(err)
	}
	return must(identity.NewMaterial(i.chain(leaf), key, i.roots))
}

// accepts reports whether who holds m accepts peer.
func accepts(m, peer *identity.Material, now time.Time) error {
	judged := *peer
	judged.Roots = m.Roots
	return judged.Check(now)
}

func follow(t *testing.T, a *Authority) *Authority {
	t.Helper()
	if err := a.follow(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

// For each moment of a rotation, with replicas that learn of it as late as
// they may: whatever certificates are valid, their holders accept each other.
// After it, what the old root signed is refused.
func TestRotationIsNotNoticed(t *testing.T) {
	store, c := newMemory(t)
	fast, slow := replica(t, store, c), replica(t, store, c)
	var held []*identity.Material
	old := issue(t, fast)
	step := settle - time.Second // also the age of what the slow one knows at last
	for i := 0; fast.issuer().phase() != Done; i++ {
		if i == 3 {
			store.request = "1"
		}
		if i > 100 {
			t.Fatal("the rotation does not end")
		}
		follow(t, fast)
		held = append(held, issue(t, fast), issue(t, slow))
		var valid []*identity.Material
		for _, m := range held {
			if m.ValidAt(c.at) {
				valid = append(valid, m)
			}
		}
		held = valid
		newest := held[max(0, len(held)-3):]
		for _, m := range held {
			for _, n := range newest {
				for _, err := range []error{accepts(m, n, c.at), accepts(n, m, c.at)} {
					if err != nil {
						t.Fatalf("phase %s: %v", fast.issuer().phase(), err)
					}
				}
			}
		}
		c.at = c.at.Add(step)
		held = append(held, issue(t, slow))
		follow(t, slow)
	}
	for _, m := range held {
		if err := accepts(m, old, old.Leaf.NotAfter.Add(-time.Second)); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Fatalf("the old root is still accepted: %v", err)
		}
	}
	if n := len(fast.issuer().roots); n != 1 {
		t.Errorf("%d roots, want the new one alone", n)
	}
	if r := store.state.Rotation; r.Old != nil || r.NextKey != nil || r.Next != nil || !r.Until.IsZero() {
		t.Errorf("left in the store: %+v", r)
	}
}

// The phases, their ends, and what each does.
func TestPhases(t *testing.T) {
	store, c := newMemory(t)
	a := replica(t, store, c)
	first := a.issuer().signer
	follow(t, a)
	if store.saves != 0 {
		t.Fatal("something was stored that nobody asked for")
	}
	store.request = "1"
	for _, test := range []struct {
		phase Phase
		roots int
		old   bool // it signs
	}{
		{Distribute, 2, true}, {Overlap, 2, false}, {Retire, 1, false},
	} {
		began := c.at
		changed := a.Changed()
		follow(t, a)
		i := a.issuer()
		select {
		case <-changed:
		default:
			t.Error("nobody was told")
		}
		if i.phase() != test.phase || len(i.roots) != test.roots || i.signer.Equal(first) != test.old {
			t.Fatalf("phase %s, %d roots, the old one signs: %v; want %+v", i.phase(), len(i.roots), i.signer.Equal(first), test)
		}
		if until := i.state.Rotation.Until; !until.Equal(began.Add(phase)) {
			t.Errorf("%s until %v, want %v", test.phase, until, began.Add(phase))
		}
		s := a.Status()
		if s.Rotation.From != first.Subject.String() || s.Rotation.To == s.Rotation.From || s.Rotation.NextKey != nil || s.Rotation.Old != nil || len(s.Roots) != test.roots {
			t.Errorf("status %+v, %+v", s, s.Rotation)
		}
		c.at = began.Add(phase - time.Second)
		if follow(t, a); a.issuer().phase() != test.phase {
			t.Fatalf("%s is over too early", test.phase)
		}
		c.at = began.Add(phase)
	}
	follow(t, a)
	saves := store.saves
	if follow(t, a); a.issuer().phase() != Done || store.saves != saves {
		t.Errorf("phase %s; the same request was answered twice: %v", a.issuer().phase(), store.saves != saves)
	}
	store.request = "2"
	if follow(t, a); a.issuer().phase() != Distribute || len(a.issuer().roots) != 2 {
		t.Errorf("a second rotation is in phase %s", a.issuer().phase())
	}
}

// Whoever begins again goes on, and asking again begins nothing new.
func TestRotationIsInterrupted(t *testing.T) {
	store, c := newMemory(t)
	store.request = "1"
	follow(t, replica(t, store, c))
	to := store.state.Rotation.To
	store.request = "2" // while it is under way
	for _, want := range []Phase{Distribute, Overlap, Retire, Done, Done, Done} {
		a := follow(t, replica(t, store, c)) // a new process each time
		if a.issuer().phase() == Distribute {
			follow(t, a)
		}
		if got := store.state.Rotation; got.Phase != want || got.To != to {
			t.Fatalf("phase %s to %s, want %s to %s", got.Phase, got.To, want, to)
		}
		c.at = c.at.Add(phase)
	}
}

// Requests without end hold no rotation up; what is too long to be the name of
// one is none.
func TestFloodOfRequests(t *testing.T) {
	store, c := newMemory(t)
	a := replica(t, store, c)
	for n, want := range []Phase{Distribute, Overlap, Retire, Done} {
		store.request = fmt.Sprint("request ", n)
		if follow(t, a); store.state.Rotation.Phase != want {
			t.Fatalf("phase %s, want %s", store.state.Rotation.Phase, want)
		}
		c.at = c.at.Add(phase)
	}
	store.request = strings.Repeat("x", maxRequestID+1)
	saves := store.saves
	if follow(t, a); store.saves != saves {
		t.Error("a request of any length begins a rotation")
	}
}

// Replicas that see a request at the same time make one new root.
func TestReplicasAgree(t *testing.T) {
	store, c := newMemory(t)
	replicas := make([]*Authority, 8)
	for i := range replicas {
		replicas[i] = replica(t, store, c)
	}
	store.request = "1"
	for range 3 {
		var all sync.WaitGroup
		for _, a := range replicas {
			all.Go(func() {
				if err := a.follow(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for _, a := range replicas {
			if follow(t, a); string(a.Roots()) != string(replicas[0].Roots()) {
				t.Fatal("they do not agree")
			}
		}
		c.at = c.at.Add(phase)
	}
	if store.saves != 3 {
		t.Errorf("%d steps were taken, want 3", store.saves)
	}
}

// A root that ends before the phase does ends the phase.
func TestRootEndsWithinARotation(t *testing.T) {
	store, c := newMemory(t)
	a := replica(t, store, c)
	c.at = a.NotAfter().Add(-10 * time.Minute)
	store.request = "1"
	follow(t, a)
	if until := store.state.Rotation.Until; !until.Equal(a.NotAfter()) {
		t.Errorf("until %v, want the old root's end, %v", until, a.NotAfter())
	}
}

func TestRotationRefused(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(*testing.T, *memory)
		want  string
	}{
		{"an intermediate signs", func(t *testing.T, m *memory) { m.state = *newHierarchy(t, 1).state() }, "is an intermediate"},
		{"the store is somebody else's", func(_ *testing.T, m *memory) { m.state.Fixed = "it is not ours" }, "it is not ours"},
	} {
		t.Run(test.name, func(t *testing.T) {
			store, c := newMemory(t)
			test.spoil(t, store)
			a := replica(t, store, c)
			store.request = "1"
			if err := a.follow(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) || store.saves != 0 {
				t.Errorf("got %v, want %q; %d saves", err, test.want, store.saves)
			}
			if s := a.Status(); !strings.Contains(s.Fixed, test.want) {
				t.Errorf("the status says %q", s.Fixed)
			}
		})
	}
}

// Whatever is wrong with the store, the authority goes on with what it has.
func TestStoreFails(t *testing.T) {
	store, c := newMemory(t)
	a := replica(t, store, c)
	before := a.issuer()
	good := store.state
	for _, spoil := range []func(){
		func() { store.broken = errors.New("no API today") },
		func() { store.broken, store.state.Key = nil, []byte("x") },
		func() { store.state = good; store.state.Chain = nil },
	} {
		spoil()
		if err := a.follow(t.Context()); err == nil || a.issuer() != before {
			t.Errorf("%v, the same: %v", err, a.issuer() == before)
		}
		issue(t, a)
	}
	store.state = good
	follow(t, a)

	// A step that cannot be stored is not taken.
	store.request = "1"
	follow(t, a)
	c.at = c.at.Add(phase)
	stuck := &fails{memory: store}
	a.store = stuck
	if err := a.follow(t.Context()); err == nil || a.issuer().phase() != Distribute {
		t.Errorf("%v, phase %s", err, a.issuer().phase())
	}
}

type fails struct{ *memory }

func (f *fails) Save(context.Context, *State, *State) error { return fmt.Errorf("disk full") }

// A server's certificate changes with the authority.
func TestServerCertificateFollows(t *testing.T) {
	store, c := newMemory(t)
	a := replica(t, store, c)
	get := must(a.ServerCertificate("tacitd.example"))
	first := must(get(nil))
	store.request = "1"
	for _, want := range []Phase{Distribute, Overlap} {
		follow(t, a)
		pool := x509.NewCertPool()
		for _, root := range a.issuer().roots {
			pool.AddCert(root)
		}
		served := must(get(nil))
		if _, err := served.Leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: c.at, DNSName: "tacitd.example"}); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		if same := served.Leaf.CheckSignatureFrom(a.issuer().signer) == nil; !same {
			t.Errorf("%s: it is not of the one that signs", want)
		}
		c.at = c.at.Add(phase)
	}
	if first.Leaf.Issuer.String() == must(get(nil)).Leaf.Issuer.String() {
		t.Error("people cannot tell the roots apart")
	}
}

// So has whoever replaces what replicas share.
func TestReplacedDuringRotation(t *testing.T) {
	m, c := newMemory(t)
	a := replica(t, m, c)
	m.request = "1"
	follow(t, a)
	key, root := must2(Generate("cluster.local"))
	m.state.Key, m.state.Chain, m.state.Roots = key, root, root
	follow(t, a)
	for range 3 {
		c.at = c.at.Add(2 * phase)
		if follow(t, a); string(a.Roots()) != string(root) || a.issuer().phase() != Abandoned || m.state.Rotation.NextKey != nil {
			t.Fatalf("phase %s, roots %q", a.issuer().phase(), names(a.issuer().roots))
		}
	}
}

// Who replaces all of it, the state of a rotation included, has their own CA in
// force, and no request from before is answered with it: neither by those who
// saw it answered, nor by who starts later. A new one is.
func TestWholeStateReplaced(t *testing.T) {
	for _, during := range []Phase{Distribute, Overlap, Retire, Done} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted %v", during, restarted), func(t *testing.T) {
				m, c := newMemory(t)
				a := replica(t, m, c)
				m.request = "1"
				for follow(t, a); a.issuer().phase() != during; follow(t, a) {
					c.at = c.at.Add(phase)
				}
				m.publish(t, a)
				key, root := must2(Generate("cluster.local"))
				m.state = State{Key: key, Chain: root, Roots: root}
				if restarted {
					a = replica(t, m, c)
					m.publish(t, a) // before it has seen to anything
					a = replica(t, m, c)
				}
				for range 4 {
					follow(t, a)
					if r := m.state.Rotation; string(a.Roots()) != string(root) || r == nil || r.Phase != Abandoned || r.Request != "1" {
						t.Fatalf("rotation %+v, roots %q, want theirs alone", r, names(a.issuer().roots))
					}
					c.at = c.at.Add(phase)
				}
				m.request = "2"
				if follow(t, a); m.state.Rotation.Phase != Distribute {
					t.Errorf("phase %s after a new request", m.state.Rotation.Phase)
				}
			})
		}
	}
}

// What tacitd may not write to is remembered all the same.
func TestReplacedBySomebodyElses(t *testing.T) {
	m, c := newMemory(t)
	a := replica(t, m, c)
	m.request = "1"
	follow(t, a)
	key, root := must2(Generate("cluster.local"))
	m.state = State{Key: key, Chain: root, Roots: root, Fixed: "it is not ours"}
	saves := m.saves
	if follow(t, a); m.saves != saves || a.Status().Rotation.Phase != Abandoned {
		t.Errorf("%d saves, status %+v", m.saves-saves, a.Status().Rotation)
	}
	m.publish(t, a)
	m.state.Fixed = ""
	if follow(t, replica(t, m, c)); string(m.state.Roots) != string(root) || m.state.Rotation.Phase != Abandoned {
		t.Errorf("as soon as it may: %+v", m.state.Rotation)
	}
}
