package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// names answers for names, and counts how often it is asked, in all and at once.
type names struct {
	mu      sync.Mutex
	answers map[string][]netip.Addr
	err     error
	asked   map[string]int
	now     int
	most    int
	slow    time.Duration
}

func (n *names) lookup(ctx context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	n.asked[host]++
	n.now++
	n.most = max(n.most, n.now)
	answer, err, slow := n.answers[host], n.err, n.slow
	n.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		err = ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now--
	if err == nil && answer == nil {
		err = &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return answer, err
}

func (n *names) set(host string, addresses ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[host] = nil
	for _, a := range addresses {
		n.answers[host] = append(n.answers[host], netip.MustParseAddr(a))
	}
}

func (n *names) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = err
}

// run has a resolver before a state, in a time of the test's own.
func run(t *testing.T, test func(t *testing.T, n *names, s *state.State, r *Resolver)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n, s := &names{answers: map[string][]netip.Addr{}, asked: map[string]int{}}, state.New()
		r := New(Config{To: s, Lookup: n.lookup})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		test(t, n, s, r)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// pass lets time go by, and what is due in it happen.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func named(uid, host string, addresses ...netip.Addr) *model.Workload {
	return &model.Workload{UID: uid, Namespace: "mesh", Hostname: host, Addresses: addresses}
}

func want(t *testing.T, s *state.State, uid string, addresses ...string) {
	t.Helper()
	synctest.Wait()
	var got []string
	for _, a := range s.Snapshot().Workload(uid).Reached() {
		got = append(got, a.String())
	}
	if !slices.Equal(got, addresses) {
		t.Errorf("%s is reached at %v, want %v", uid, got, addresses)
	}
}

func TestLifeOfAName(t *testing.T) {
	run(t, func(t *testing.T, n *names, s *state.State, r *Resolver) {
		own := netip.MustParseAddr("198.18.1.1")
		n.set("db.example.", "203.0.113.2", "203.0.113.1", "203.0.113.1", "::ffff:203.0.113.3", "127.0.0.1", "169.254.169.254", "224.0.0.1", "fe80::1", "0.0.0.0")
		r.Apply(model.Update{Workloads: []*model.Workload{named("a", "db.example"), named("b", "db.example."), named("c", "db.example", own), named("d", "*.example"), named("e", "")}})
		want(t, s, "a", "203.0.113.1", "203.0.113.2", "203.0.113.3")
		want(t, s, "b", "203.0.113.1", "203.0.113.2", "203.0.113.3")
		want(t, s, "c", "198.18.1.1")
		want(t, s, "d")
		want(t, s, "e")
		if at := s.Snapshot().WorkloadAt("", netip.MustParseAddr("203.0.113.1")); at != nil {
			t.Errorf("%s is found by an address that only its name leads to", at.UID)
		}

		// Another workload of the name has its addresses at once.
		r.Apply(model.Update{Workloads: []*model.Workload{named("f", "db.example")}})
		if got := s.Snapshot().Workload("f").Reached(); len(got) != 3 {
			t.Errorf("a later one is reached at %v", got)
		}
		if len(n.asked) != 1 || n.asked["db.example."] != 1 {
			t.Errorf("asked for %v", n.asked)
		}

		n.set("db.example.", "203.0.113.9")
		pass(refresh + time.Second)
		want(t, s, "a", "203.0.113.9")
		n.fail(errors.New("no answer"))
		pass(10 * refresh)
		want(t, s, "a", "203.0.113.9")
		n.fail(nil)
		n.set("db.example.")
		pass(refresh)
		want(t, s, "a")
		n.set("db.example.", "203.0.113.8")
		pass(refresh)
		want(t, s, "a", "203.0.113.8")

		// With an address of its own the name is nobody's any more.
		r.Apply(model.Update{Workloads: []*model.Workload{named("a", "db.example", own)}, RemovedAddresses: []string{"b", "f"}})
		want(t, s, "a", "198.18.1.1")
		pass(2 * refresh)
		before := n.asked["db.example."]
		pass(10 * refresh)
		if after := n.asked["db.example."]; after != before || len(r.names) != 0 || len(r.of) != 0 {
			t.Errorf("asked %d times more for a name of nobody; %v are left", after-before, r.names)
		}
	})
}

// However many names there are, and however slow the answers, there are bounds.
func TestBounds(t *testing.T) {
	run(t, func(t *testing.T, n *names, _ *state.State, r *Resolver) {
		n.slow = time.Hour
		var all []*model.Workload
		for i := range maxNames + 5 {
			all = append(all, named(fmt.Sprint(i), fmt.Sprintf("n%d.example", i)))
		}
		r.Apply(model.Update{Workloads: all})
		pass(timeout)
		if len(r.names) != maxNames {
			t.Errorf("%d names are asked for, want %d", len(r.names), maxNames)
		}
		if n.most != atOnce || len(n.asked) <= atOnce {
			t.Errorf("%d at once, want %d, and %d in all", n.most, atOnce, len(n.asked))
		}
	})
	run(t, func(t *testing.T, n *names, s *state.State, r *Resolver) {
		var many []string
		for i := range 100 {
			many = append(many, fmt.Sprintf("203.0.113.%d", i+1))
		}
		n.set("db.example.", many...)
		r.Apply(model.Update{Workloads: []*model.Workload{named("a", "db.example")}})
		want(t, s, "a", many[:maxAddresses]...)
	})
}
