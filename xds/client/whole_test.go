package client

import (
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/xds/wire"
)

// partial says that more responses of the same change follow.
func partial(r *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryResponse {
	r.SystemVersionInfo = wire.VersionInfo(1, true)
	return r
}

func (s *stream) send(t *testing.T, r *discovery.DeltaDiscoveryResponse) {
	t.Helper()
	if err := s.grpc.Send(r); err != nil {
		t.Fatal(err)
	}
}

func TestChangeOfSeveralResponsesIsAppliedWhole(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	st.send(t, partial(policies("1", aPolicy("p", "1", 80), aPolicy("q", "1", 80))))
	st.send(t, partial(addresses("2", aWorkload("a", "1"), aWorkload("b", "1"), aService("h", "1"), bad("wrong", "1", aWorkload("x", "1")))))
	st.send(t, partial(removing(addresses("3", aWorkload("a", "2")), "b", "ns/h")))
	c.sink.none(t)
	if s := c.Status(); s.Policies.Resources+s.Addresses.Resources > 0 {
		t.Errorf("holds resources of a change that has not come whole: %+v", s)
	}
	st.send(t, removing(policies("4"), "ns/q"))
	for _, want := range []string{"1", "2", "3", "4"} {
		answer := next(t, "an answer", st.requests)
		if answer.GetResponseNonce() != want || (answer.GetErrorDetail() != nil) != (want == "2") {
			t.Errorf("answer %v, want one to %s", answer, want)
		}
	}
	u := c.sink.one(t)
	if !u.AddressesComplete || !u.PoliciesComplete {
		t.Errorf("update %+v is not complete", u)
	}
	c.sink.none(t)
	s := c.sink.snapshot
	if got := strings.Join(append(uids(s.Workloads()), policyKeys(s.Policies())...), " "); got != "a ns/p" || s.Workload("a").Name != "2" || len(s.Services()) > 0 {
		t.Errorf("in force: %s, services %v", got, s.Services())
	}
}

// What has come of a change when the connection ends is asked for again.
func TestChangeCutShortNeverWas(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	st.mustAck(t, policies("1", aPolicy("p", "1", 80)))
	c.sink.one(t)
	st.send(t, partial(policies("2", aPolicy("p", "2", 81))))
	st.ended <- status.Error(codes.Unavailable, "restarting")
	st = next(t, "another stream", srv.streams)
	if p, _ := st.subscriptions(t); p.GetInitialResourceVersions()["ns/p"] != "1" {
		t.Errorf("versions %v, want the one in force", p.GetInitialResourceVersions())
	}
	c.sink.none(t)
}

func TestChangeWithoutEnd(t *testing.T) {
	srv := newServer(t)
	log, failures := ended()
	srv.startClient(t, func(c *Config) { c.Log = log })
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	for range maxHeld {
		st.send(t, partial(policies("1", aPolicy("p", "1", 80))))
	}
	next(t, "the connection's end", failures)
}
