package conns_test

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/proxy/conns"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var server = &model.Workload{UID: "server", Namespace: "ns", TrustDomain: "td", Addresses: []netip.Addr{netip.MustParseAddr("198.18.1.1")}}

// conn is a connection from one namespace to the server.
type conn struct {
	id, namespace string
	unchecked     bool
	reviewing     func()
	once          sync.Once
	denied        chan policy.Decision
}

func newConn(id, namespace string) *conn {
	return &conn{id: id, namespace: namespace, denied: make(chan policy.Decision, 1)}
}

func (c *conn) ID() string { return c.id }

func (c *conn) Review(s *model.Snapshot, now time.Time) (policy.Decision, bool) {
	if c.reviewing != nil {
		c.reviewing()
	}
	return policy.Evaluate(s, &policy.Request{
		Identity:    model.Identity{TrustDomain: "td", Namespace: c.namespace, ServiceAccount: "sa"},
		Destination: netip.AddrPortFrom(server.Addresses[0], 80),
		Workload:    s.Workload("server"),
		Time:        now,
	}), !c.unchecked
}

func (c *conn) Deny(d policy.Decision) { c.once.Do(func() { c.denied <- d }) }

func deny(namespace string) *model.Policy {
	match := model.Match{Namespaces: []model.StringMatch{{Value: namespace}}}
	return &model.Policy{
		Name: "deny-" + namespace, Namespace: "ns", Scope: model.ScopeNamespace, Action: model.ActionDeny,
		Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{match}}}}},
	}
}

func TestAPolicyEndsExactlyTheConnectionsThatItDenies(t *testing.T) {
	s := state.New()
	s.Apply(model.Update{Workloads: []*model.Workload{server}, AddressesComplete: true, PoliciesComplete: true})
	table := conns.NewTable[*conn]()
	stays, goes, unchecked := newConn("1", "good"), newConn("2", "bad"), newConn("3", "bad")
	unchecked.unchecked = true
	for _, c := range []*conn{stays, goes, unchecked} {
		table.Add(c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- table.Run(ctx, s) }()

	s.Apply(model.Update{Policies: []*model.Policy{deny("bad")}})
	if d := <-goes.denied; d.Policy != "ns/deny-bad" || d.Reason != policy.ReasonDenied {
		t.Errorf("denied by %+v, want policy ns/deny-bad", d)
	}
	// The next change shows that this one was evaluated for all of them.
	late := newConn("4", "worse")
	table.Add(late)
	s.Apply(model.Update{Policies: []*model.Policy{deny("worse")}})
	<-late.denied
	for _, c := range []*conn{stays, unchecked} {
		select {
		case d := <-c.denied:
			t.Errorf("connection %s ended: %+v", c.id, d)
		default:
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run returned %v", err)
	}
}

// A connection that enters the table before it reads the snapshot is judged by
// every policy that was published after that, whatever the interleaving.
func TestNoConnectionSlipsThroughBetweenTwoSnapshots(t *testing.T) {
	for range 300 {
		s := state.New()
		s.Apply(model.Update{Workloads: []*model.Workload{server}, AddressesComplete: true, PoliciesComplete: true})
		table := conns.NewTable[*conn]()
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = table.Run(ctx, s) })
		running.Go(func() { s.Apply(model.Update{Policies: []*model.Policy{deny("bad")}}) })

		c := newConn("1", "bad")
		table.Add(c)
		if d, _ := c.Review(s.Snapshot(), time.Now()); !d.Allowed {
			c.Deny(d)
		}
		<-c.denied
		cancel()
		running.Wait()
	}
}

// A connection that a newer snapshot has allowed is not denied by the older one
// in which others are reviewed.
func TestEachIsReviewedInTheNewestSnapshot(t *testing.T) {
	s := state.New()
	s.Apply(model.Update{
		Workloads: []*model.Workload{server}, Policies: []*model.Policy{deny("bad")}, AddressesComplete: true, PoliciesComplete: true,
	})
	table := conns.NewTable[*conn]()
	all := []*conn{newConn("1", "bad"), newConn("2", "bad")}
	for _, c := range all {
		c.reviewing = func() { s.Apply(model.Update{RemovedPolicies: []string{"ns/deny-bad"}}) }
		table.Add(c)
	}
	table.Evaluate(s, time.Now())
	if denied := len(all[0].denied) + len(all[1].denied); denied != 1 {
		t.Errorf("%d connections are denied, want the one that was looked at before the policy went", denied)
	}
}

func TestEndedConnectionsAreRememberedWithinABound(t *testing.T) {
	table := conns.NewTable[*conn]()
	for i := range 10_000 {
		c := newConn(strconv.Itoa(i), "ns")
		table.Add(c)
		table.End(c)
	}
	client, server := newConn("both", "ns"), newConn("both", "ns")
	table.Add(client)
	table.Add(server)
	table.End(server)
	if n := len(table.Live()); n != 1 {
		t.Errorf("%d live connections, want 1", n)
	}
	if n := len(table.Find("both")); n != 2 {
		t.Errorf("found %d sides of the connection, want both", n)
	}
	if table.Find("0") != nil || table.Find("9999") == nil {
		t.Error("want the oldest forgotten and the newest remembered")
	}
}
