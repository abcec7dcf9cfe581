package model

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	const key = "ns/web.ns.svc"
	at := func(ip string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(ip)} }
	member := &Workload{UID: "c//Pod/ns/b", Addresses: at("198.18.0.2"), Services: map[string][]Port{key: nil}}
	s := NewSnapshot().Apply(Update{
		Workloads: []*Workload{
			{UID: "c//Pod/ns/a", Addresses: at("198.18.0.1"), Network: "net"}, member,
			{UID: "c//Pod/ns/h", Addresses: at("198.18.0.3"), HostNetwork: true},
			{UID: "c//Pod/ns/n", Namespace: "ns", Hostname: "gate.example"},
		},
		Services: []*Service{{Namespace: "ns", Hostname: "web.ns.svc", Addresses: []NetworkAddress{{Prefix: netip.MustParsePrefix("198.18.9.1/32")}, {Prefix: netip.MustParsePrefix("198.18.8.0/24")}}}},
	})
	for name, want := range map[string][]string{
		"net/198.18.0.1": {"c//Pod/ns/a"}, "/198.18.0.1": nil, "c//Pod/ns/a": {"c//Pod/ns/a"},
		"/198.18.0.2": {member.UID}, "/198.18.0.3": nil, key: {key, member.UID},
		"/198.18.9.1": {key, member.UID}, "/198.18.8.7": {key, member.UID}, "/198.18.7.7": nil,
		"ns/gate.example": {"c//Pod/ns/n"}, "": nil, "/": nil, "nonsense": nil,
	} {
		var got []string
		s.Named(name, func(resource string) { got = append(got, resource) })
		if !slices.Equal(got, want) {
			t.Errorf("%q stands for %q, want %q", name, got, want)
		}
		if first := s.Stands(name); first != strings.Join(got[:min(len(got), 1)], "") {
			t.Errorf("%q stands for %q first, and Named yields %q", name, first, got)
		}
	}
	if !s.Heard("/198.18.0.9") || s.OnDemand() {
		t.Error("in the whole mesh there is something to ask for")
	}
	s = s.Apply(Update{OnDemand: true, Heard: []string{"/198.18.0.9"}})
	if !s.Heard("/198.18.0.9") || s.Heard("/198.18.0.1") || !s.OnDemand() || s.Apply(Update{Unheard: []string{"/198.18.0.9"}}).Heard("/198.18.0.9") {
		t.Error("heard is not what was said")
	}
}
