package client

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

func onDemand(c *Config) {
	c.OnDemand = true
	c.Known = func() *model.Snapshot { return c.Sink.(*recorder).snapshot }
}

// aPod is a workload with an address, and aliases as control planes send them.
func aPod(uid, ip, node string, services ...string) *discovery.Resource {
	w := &model.Workload{UID: uid, Name: uid, Namespace: "ns", TrustDomain: "td", ServiceAccount: "sa", Node: node, Addresses: []netip.Addr{netip.MustParseAddr(ip)}}
	for _, key := range services {
		if w.Services == nil {
			w.Services = map[string][]model.Port{}
		}
		w.Services[key] = []model.Port{{Service: 80, Target: 80}}
	}
	r := res(uid, ip, must(wire.EncodeWorkload(w)))
	r.Aliases = []string{"/" + ip}
	return r
}

func aVIP(host, prefix string) *discovery.Resource {
	v := &model.Service{Name: host, Namespace: "ns", Hostname: host, Addresses: []model.NetworkAddress{{Prefix: netip.MustParsePrefix(prefix)}}}
	return res(v.Key(), prefix, must(wire.EncodeService(v)))
}

// generation marks a response as tacitd does.
func generation(r *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryResponse {
	r.SystemVersionInfo = wire.VersionInfo(1, false)
	return r
}

// demanding is a client on demand that has had the first word.
func demanding(t *testing.T) (*server, *running, *stream) {
	t.Helper()
	srv := newServer(t)
	c := srv.startClient(t, onDemand)
	st := next(t, "a stream", srv.streams)
	_, first := st.subscriptions(t)
	if !slices.Equal(first.GetResourceNamesSubscribe(), []string{"*"}) || !slices.Equal(first.GetResourceNamesUnsubscribe(), []string{"*"}) {
		t.Fatalf("the first request is %v, want one for nothing", first)
	}
	st.mustAck(t, policies("1"))
	c.sink.one(t)
	st.mustAck(t, generation(addresses("2", aPod("own", "198.18.0.1", "node-a"))))
	if u := c.sink.one(t); !u.AddressesComplete || !u.OnDemand {
		t.Errorf("update %+v", u)
	}
	next(t, "readiness", c.Ready())
	return srv, c, st
}

func (r *running) hold(t *testing.T, name string) (release func()) {
	t.Helper()
	release, ok := r.Hold(name)
	if !ok {
		t.Fatalf("there is no room for %s", name)
	}
	return release
}

// asked is the next request, one for names or one that gives them up.
func (s *stream) asked(t *testing.T, subscribe, unsubscribe string) {
	t.Helper()
	r := s.named(t)
	if got, gave := strings.Join(r.GetResourceNamesSubscribe(), " "), strings.Join(r.GetResourceNamesUnsubscribe(), " "); got != subscribe || gave != unsubscribe || r.GetResponseNonce() != "" {
		t.Fatalf("asked for %q and gave up %q, want %q and %q (%v)", got, gave, subscribe, unsubscribe, r)
	}
}

// named is the next request that has names other than marks, and only those.
func (s *stream) named(t *testing.T) *discovery.DeltaDiscoveryRequest {
	t.Helper()
	for {
		r := next(t, "a request", s.requests)
		r.ResourceNamesSubscribe = s.unmarked(r.GetResourceNamesSubscribe())
		r.ResourceNamesUnsubscribe = slices.DeleteFunc(r.GetResourceNamesUnsubscribe(), func(name string) bool { return batchOf(name) != 0 })
		slices.Sort(r.ResourceNamesUnsubscribe)
		if len(r.ResourceNamesSubscribe)+len(r.ResourceNamesUnsubscribe) > 0 || r.GetResponseNonce() != "" {
			return r
		}
	}
}

// unmarked keeps the marks among names for the answer.
func (s *stream) unmarked(names []string) (out []string) {
	for _, name := range names {
		if batchOf(name) != 0 {
			s.marks = append(s.marks, name)
		} else {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// answer sends a response that answers all that was asked for.
func (s *stream) answer(t *testing.T, r *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryRequest {
	t.Helper()
	r.RemovedResources = append(r.RemovedResources, s.marks...)
	s.marks = nil
	return s.respond(t, r)
}

func (s *stream) mustAnswer(t *testing.T, r *discovery.DeltaDiscoveryResponse) {
	t.Helper()
	if answer := s.answer(t, r); answer.GetErrorDetail() != nil {
		t.Fatalf("rejected: %s", answer.GetErrorDetail().GetMessage())
	}
}

func TestAsksOnceForWhatIsHeld(t *testing.T) {
	_, c, st := demanding(t)
	for range 100 {
		defer c.hold(t, "/198.18.0.2")()
	}
	st.asked(t, "/198.18.0.2", "")
	if c.sink.snapshot.Heard("/198.18.0.2") {
		t.Error("heard before the answer")
	}
	if s := c.Status(); s.Names != 1 || s.Unanswered != 1 {
		t.Errorf("status %+v", s)
	}
	st.mustAck(t, generation(addresses("3", aPod("other", "198.18.0.3", "node-b"))))
	if u := c.sink.one(t); len(u.Heard) > 0 {
		t.Errorf("an answer about another: %q", u.Heard)
	}
	st.mustAnswer(t, generation(addresses("4", aPod("a", "198.18.0.2", "node-b"))))
	if u := c.sink.one(t); !slices.Equal(u.Heard, []string{"/198.18.0.2"}) || len(u.Workloads) != 1 {
		t.Errorf("update %+v", u)
	}
	defer c.hold(t, "/198.18.0.2")()
	defer c.hold(t, "ns/h")()
	st.asked(t, "ns/h", "") // and not the other again
}

func TestNamesOutliveConnections(t *testing.T) {
	srv, c, st := demanding(t)
	defer c.hold(t, "/198.18.0.2")()
	st.asked(t, "/198.18.0.2", "")
	st.mustAnswer(t, generation(addresses("3", aPod("a", "198.18.0.2", "node-b"))))
	defer c.hold(t, "/198.18.0.3")()
	st.asked(t, "/198.18.0.3", "")
	srv.stop()
	defer c.hold(t, "/198.18.0.4")()
	c.hold(t, "/198.18.0.5")()
	if !c.sink.snapshot.Heard("/198.18.0.2") {
		t.Error("forgotten in an outage")
	}
	srv.start(t)
	st = next(t, "another stream", srv.streams)
	_, first := st.subscriptions(t)
	if got := st.unmarked(first.GetResourceNamesSubscribe()); !slices.Equal(got, []string{"*", "/198.18.0.2"}) || !slices.Equal(first.GetResourceNamesUnsubscribe(), []string{"*"}) {
		t.Errorf("the first request is %v", first)
	}
	if got := slices.Sorted(maps.Keys(first.GetInitialResourceVersions())); !slices.Equal(got, []string{"a", "own"}) {
		t.Errorf("it has versions of %q", got)
	}
	st.asked(t, "/198.18.0.3 /198.18.0.4", "")
	st.mustAck(t, generation(removing(addresses("4"), append([]string{"a"}, st.marks[0])...)))
	if c.sink.snapshot.Heard("/198.18.0.2") {
		t.Error("what went in an outage counts as heard")
	}
}

// Marks are given up, and names that nobody holds are not asked for.
func TestNothingIsLeftOfWhatIsNotAskedFor(t *testing.T) {
	config := Config{Sink: newRecorder()}
	onDemand(&config)
	c := New(config)
	for i := range 100 {
		release, ok := c.Hold(fmt.Sprint("/", i))
		if !ok {
			t.Fatal("no room")
		}
		release()
	}
	if len(c.names)+len(c.unasked) > 0 {
		t.Errorf("%d names and %d to be asked for are left", len(c.names), len(c.unasked))
	}
	release, _ := c.Hold("/198.18.0.2")
	defer release()
	c.requests(time.Now())
	c.accept([]*discovery.DeltaDiscoveryResponse{removing(addresses("1"), "/198.18.0.2", markOf(1))})
	if out := c.requests(time.Now()); len(out) != 1 || !slices.Equal(out[0].GetResourceNamesUnsubscribe(), []string{markOf(1)}) {
		t.Errorf("given up: %v", out)
	}
}

func TestLetsGo(t *testing.T) {
	_, c, st := demanding(t)
	release := c.hold(t, "/198.18.9.1")
	kept := c.hold(t, "/198.18.0.2")
	defer kept()
	nothing := c.hold(t, "/203.0.113.1")
	for len(c.requestsSeen(st, t)) < 3 {
		continue
	}
	st.mustAnswer(t, generation(removing(addresses("3", aVIP("h", "198.18.9.1/32"), aPod("a", "198.18.0.2", "node-b"), aPod("e", "198.18.0.3", "node-b", "ns/h")), "/203.0.113.1")))
	release()
	nothing()
	c.letGo(time.Now().Add(keepNothing))
	if s := c.sink.snapshot; s.Heard("/203.0.113.1") || !s.Heard("/198.18.9.1") || len(s.Workloads()) != 3 {
		t.Error("what is nothing goes first")
	}
	c.letGo(time.Now().Add(keepIdle))
	s := c.sink.snapshot
	if got := strings.Join(uids(s.Workloads()), " "); got != "a own" || len(s.Services()) > 0 || s.Heard("/198.18.9.1") || !s.Heard("/198.18.0.2") {
		t.Errorf("left are %s and services %v", got, s.Services())
	}
	defer c.hold(t, "/198.18.9.1")()
	st.asked(t, "", "/198.18.9.1 /203.0.113.1 e ns/h")
	st.asked(t, "/198.18.9.1", "")
}

// requestsSeen reads one request for names, and returns all names so far.
func (r *running) requestsSeen(st *stream, t *testing.T) []string {
	t.Helper()
	r.asked = append(r.asked, st.named(t).GetResourceNamesSubscribe()...)
	return r.asked
}

func TestNamesAreBounded(t *testing.T) {
	config := Config{Sink: newRecorder()}
	onDemand(&config)
	c := New(config)
	c.Restore(nil)
	var releases []func()
	for i := range maxNames {
		release, ok := c.Hold(fmt.Sprint("/", i))
		if !ok {
			t.Fatalf("no room for %d", i)
		}
		releases = append(releases, release)
	}
	if _, ok := c.Hold("/one-more"); ok {
		t.Error("there is room without end")
	}
	c.requests(time.Now())
	c.letGo(time.Now())
	if _, ok := c.Hold("/one-more"); ok {
		t.Error("something that is held was let go")
	}
	for _, release := range releases[:100] {
		release()
	}
	c.letGo(time.Now())
	if n := c.Status().Names; n != maxNames-100 {
		t.Errorf("%d names are left", n)
	}
	if _, ok := c.Hold("/one-more"); !ok {
		t.Error("no room where some were let go")
	}
}

// A control plane that does not say when there is something new behind a name
// is asked again.
func TestAsksIstioAgain(t *testing.T) {
	_, c, st := demanding(t)
	defer c.hold(t, "/198.18.0.2")()
	st.asked(t, "/198.18.0.2", "")
	defer c.hold(t, "/198.18.0.3")()
	st.asked(t, "/198.18.0.3", "")
	istio := removing(addresses("3", aPod("a", "198.18.0.2", "node-b")), "/198.18.0.3")
	istio.SystemVersionInfo = "2026-08-22T10:11:12Z/7"
	st.mustAnswer(t, istio)
	c.letGo(time.Now().Add(askAgainNothing))
	st.asked(t, "", "/198.18.0.3")
	st.asked(t, "/198.18.0.3", "")
	c.letGo(time.Now().Add(askAgain))
	st.asked(t, "", "/198.18.0.2 /198.18.0.3")
	st.asked(t, "/198.18.0.2 /198.18.0.3", "")
	if !c.sink.snapshot.Heard("/198.18.0.2") || !c.sink.snapshot.Heard("/198.18.0.3") {
		t.Error("forgotten meanwhile")
	}
}

func TestNamesAreRestored(t *testing.T) {
	_, c, st := demanding(t)
	defer c.hold(t, "/198.18.0.2")()
	st.asked(t, "/198.18.0.2", "")
	st.mustAnswer(t, generation(addresses("3", aPod("a", "198.18.0.2", "node-b"))))
	data, err := c.Export()
	if err != nil {
		t.Fatal(err)
	}
	if s, errs := Snapshot(data); len(errs) > 0 || !s.OnDemand() || !s.Heard("/198.18.0.2") || s.Workload("a") == nil {
		t.Errorf("looked at elsewhere it is another: %v", errs)
	}
	state := &tacit.SavedState{}
	if err := proto.Unmarshal(data, state); err != nil {
		t.Fatal(err)
	}
	for _, saved := range state.GetTypes() {
		if onDemand := saved.GetTypeUrl() == wire.AddressType; saved.GetComplete() == onDemand || saved.GetOnDemandComplete() != onDemand {
			t.Errorf("a version without names on demand would read of %s: complete %v", saved.GetTypeUrl(), saved.GetComplete())
		}
	}
	for _, same := range []bool{true, false} {
		config := Config{Sink: newRecorder()}
		if same {
			onDemand(&config)
		}
		restored := New(config)
		if err := restored.Restore(data); err != nil {
			t.Fatal(err)
		}
		s := config.Sink.(*recorder).snapshot
		if known := s.Workload("a") != nil; known != same || same && (!s.OnDemand() || !s.Heard("/198.18.0.2") || s.Heard("/198.18.0.3")) {
			t.Errorf("on demand %v: known %v", same, known)
		}
		if same {
			if again, err := restored.Export(); err != nil || string(again) != string(data) {
				t.Errorf("exported again it is something else: %v", err)
			}
		}
	}
}

// A control plane that sends without taking anything is still listened to.
func TestReceivesWhileNothingIsTaken(t *testing.T) {
	_, _, st := demanding(t)
	sent := make(chan error, 1)
	go func() {
		for i := range maxAnswers {
			if err := st.grpc.Send(addresses(strings.Repeat(fmt.Sprint(i%10), 16<<10))); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	if err := next(t, "all to be received, though no answer is taken", sent); err != nil {
		t.Fatal(err)
	}
}
