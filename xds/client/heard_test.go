package client

import (
	"net/netip"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

func TestAnswers(t *testing.T) {
	wrong := bad("b", "1", aPod("x", "198.18.0.2", "node-b"))
	wrong.Aliases = []string{"/198.18.0.2"}
	host := res("h", "1", must(wire.EncodeWorkload(&model.Workload{UID: "h", Name: "h", Namespace: "ns", TrustDomain: "td", ServiceAccount: "sa", HostNetwork: true, Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.2")}})))
	host.Aliases = []string{"/198.18.0.2"}
	for name, test := range map[string]struct {
		answer *discovery.DeltaDiscoveryResponse
		heard  bool
	}{
		"a pod":                         {addresses("3", aPod("a", "198.18.0.2", "node-b")), true},
		"a virtual address":             {addresses("3", aVIP("h", "198.18.0.2/32")), true},
		"within a range":                {addresses("3", aVIP("h", "198.18.0.0/24")), true},
		"nothing":                       {removing(addresses("3"), "/198.18.0.2"), true},
		"a pod of the node's network":   {addresses("3", host), true},
		"nothing at another":            {removing(addresses("3"), "/198.18.0.3"), false},
		"another":                       {addresses("3", aPod("a", "198.18.0.4", "node-b"), aVIP("h", "198.18.1.0/24")), false},
		"an empty one":                  {addresses("3"), false},
		"what is wrong, within a range": {addresses("3", aVIP("h", "198.18.0.0/24"), wrong), false},
		"what is wrong":                 {addresses("3", wrong), false},
		"what has gone, by its own ID":  {removing(addresses("3"), "K//Pod/ns/a"), false},
	} {
		t.Run(name, func(t *testing.T) {
			_, c, st := demanding(t)
			defer c.hold(t, "/198.18.0.2")()
			st.asked(t, "/198.18.0.2", "")
			st.answer(t, test.answer)
			if got := c.sink.snapshot.Heard("/198.18.0.2"); got != test.heard {
				t.Errorf("heard: %v", got)
			}
		})
	}
}

// What was on its way before a name was asked for is no answer to it.
func TestHearsOnlyAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		key   string
		stale *discovery.DeltaDiscoveryResponse
	}{
		"a range that the address is in":         {"/198.18.0.2", addresses("3", aVIP("range", "198.18.0.0/24"))},
		"the end of what was given up":           {"ns/h", removing(addresses("3"), "ns/h")},
		"the address of a pod, which is another": {"/198.18.0.2", addresses("3", aPod("old", "198.18.0.2", "node-b"))},
		"that it was nothing":                    {"/198.18.0.2", removing(addresses("3"), "/198.18.0.2")},
		"a batch before":                         {"/198.18.0.2", removing(addresses("3"), "/198.18.0.2", markOf(1))},
	} {
		t.Run(name, func(t *testing.T) {
			_, c, st := demanding(t)
			defer c.hold(t, "/198.18.0.9")() // the batch before
			st.asked(t, "/198.18.0.9", "")
			st.marks = nil
			defer c.hold(t, test.key)()
			st.asked(t, test.key, "")
			st.mustAck(t, generation(test.stale))
			if c.sink.snapshot.Heard(test.key) {
				t.Error("heard before the answer")
			}
			st.mustAnswer(t, generation(addresses("4", aVIP("h", "198.18.0.2/32"))))
			if !c.sink.snapshot.Heard(test.key) || c.sink.snapshot.Stands(test.key) == "" {
				t.Error("not heard with the answer")
			}
		})
	}
}

// A range that an address is in says nothing of who is there after a pod.
func TestAsksAgainWithinARange(t *testing.T) {
	_, c, st := demanding(t)
	defer c.hold(t, "/198.18.0.2")()
	st.asked(t, "/198.18.0.2", "")
	st.mustAnswer(t, generation(addresses("3", aPod("a", "198.18.0.2", "node-b"), aVIP("range", "198.18.0.0/24"))))
	st.mustAck(t, generation(removing(addresses("4"), "a")))
	if c.sink.snapshot.Heard("/198.18.0.2") {
		t.Error("still heard")
	}
	st.asked(t, "", "/198.18.0.2")
	st.asked(t, "/198.18.0.2", "")
	st.mustAnswer(t, generation(addresses("5", aPod("b", "198.18.0.2", "node-b"))))
	if !c.sink.snapshot.Heard("/198.18.0.2") || c.sink.snapshot.Stands("/198.18.0.2") != "b" {
		t.Error("not heard")
	}
}

// What merely has gone says nothing of who is there now.
func TestAsksAgainWhereMeaningIsLost(t *testing.T) {
	_, c, st := demanding(t)
	defer c.hold(t, "/198.18.0.2")()
	st.asked(t, "/198.18.0.2", "")
	st.mustAnswer(t, generation(addresses("3", aPod("a", "198.18.0.2", "node-b"))))
	st.mustAck(t, generation(removing(addresses("4"), "a")))
	if c.sink.snapshot.Heard("/198.18.0.2") {
		t.Error("still heard")
	}
	st.asked(t, "", "/198.18.0.2")
	st.asked(t, "/198.18.0.2", "")
	st.mustAnswer(t, generation(removing(addresses("5"), "/198.18.0.2")))
	if !c.sink.snapshot.Heard("/198.18.0.2") {
		t.Error("not heard")
	}
}

// Of what this version cannot read it is not known by which names it is found.
func TestNamesOfWhatIsUnreadableAreNotRestored(t *testing.T) {
	state := &tacit.SavedState{Types: []*tacit.SavedType{{
		TypeUrl: wire.AddressType, OnDemand: true, Names: []string{"/198.18.0.2"},
		Resources: []*tacit.SavedResource{{Name: "a", Resource: &anypb.Any{TypeUrl: wire.AddressType, Value: []byte("nonsense")}}},
	}}}
	data, err := proto.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	config := Config{Sink: newRecorder()}
	onDemand(&config)
	if err := New(config).Restore(data); err != nil {
		t.Fatal(err)
	}
	if s := config.Sink.(*recorder).snapshot; !s.OnDemand() || s.Heard("/198.18.0.2") {
		t.Error("what may be there counts as nothing")
	}
}
