package wire

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/xds/model"
)

var (
	text     = rapid.StringOf(rapid.Rune())
	part     = rapid.StringMatching(`[a-z][a-z0-9.-]{0,10}`)
	port     = rapid.Uint16Min(1)
	address4 = rapid.Map(rapid.SliceOfN(rapid.Byte(), 4, 4), func(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) })
	address6 = rapid.Map(rapid.SliceOfN(rapid.Byte(), 16, 16), func(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)).Unmap() })
	address  = rapid.OneOf(address4, address6)
	prefix   = rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := address.Draw(t, "address")
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
	})
	portRange = rapid.Custom(func(t *rapid.T) model.PortRange {
		first := port.Draw(t, "first")
		return model.PortRange{First: first, Last: rapid.Uint16Min(first).Draw(t, "last")}
	})
	servicePort = rapid.Custom(func(t *rapid.T) model.Port {
		return model.Port{
			Service:     port.Draw(t, "service"),
			Target:      rapid.Uint16().Draw(t, "target"),
			AppProtocol: rapid.SampledFrom([]model.AppProtocol{model.AppUnknown, model.AppHTTP11, model.AppHTTP2, model.AppGRPC, model.AppTCP, model.AppTLS}).Draw(t, "protocol"),
		}
	})
	stringMatch = rapid.Custom(func(t *rapid.T) model.StringMatch {
		m := model.StringMatch{Kind: rapid.SampledFrom([]model.StringMatchKind{model.MatchExact, model.MatchPrefix, model.MatchSuffix, model.MatchPresence}).Draw(t, "kind")}
		if m.Kind != model.MatchPresence {
			m.Value = text.Draw(t, "value")
		}
		return m
	})
	account = rapid.Custom(func(t *rapid.T) model.ServiceAccount {
		return model.ServiceAccount{Namespace: part.Draw(t, "namespace"), Name: part.Draw(t, "name")}
	})
	label = rapid.Custom(func(t *rapid.T) model.LabelMatch {
		return model.LabelMatch{Key: part.Draw(t, "key"), Values: rapid.SliceOfN(stringMatch, 1, 3).Draw(t, "values")}
	})
	window = rapid.Custom(func(t *rapid.T) model.TimeWindow {
		seconds := rapid.Map(rapid.IntRange(0, secondsPerDay), func(n int) time.Duration { return time.Duration(n) * time.Second })
		return model.TimeWindow{First: seconds.Draw(t, "first"), Last: seconds.Draw(t, "last")}
	})
)

// gateway draws one that is named by its service, or by its address.
var gateway = rapid.Custom(func(t *rapid.T) model.Gateway {
	g := model.Gateway{Port: port.Draw(t, "gateway port")}
	if rapid.Bool().Draw(t, "by service") {
		g.Service = part.Draw(t, "gateway namespace") + "/" + part.Draw(t, "gateway hostname")
	} else {
		g.Network, g.Address = text.Draw(t, "gateway network"), address.Draw(t, "gateway address")
	}
	return g
})

var weighted = rapid.Custom(func(t *rapid.T) model.WeightedGateway {
	return model.WeightedGateway{Gateway: gateway.Draw(t, "gateway"), Weight: rapid.Uint32Min(1).Draw(t, "weight")}
})

// list draws nil rather than an empty slice, as decoding does.
func list[T any](t *rapid.T, g *rapid.Generator[T], what string) []T {
	out := rapid.SliceOfN(g, 0, 3).Draw(t, what)
	if len(out) == 0 {
		return nil
	}
	return out
}

func drawMap[V any](t *rapid.T, g *rapid.Generator[V], what string) map[string]V {
	out := rapid.MapOfN(part, g, 0, 3).Draw(t, what)
	if len(out) == 0 {
		return nil
	}
	return out
}

// drawServices has the keys of services.
func drawServices(t *rapid.T, ports *rapid.Generator[[]model.Port]) (out map[string][]model.Port) {
	for name, list := range drawMap(t, ports, "services") {
		if out == nil {
			out = map[string][]model.Port{}
		}
		out["ns/"+name] = list
	}
	return out
}

func drawWorkload(t *rapid.T) *model.Workload {
	ports := rapid.Custom(func(t *rapid.T) []model.Port { return list(t, servicePort, "ports") })
	return &model.Workload{
		UID:               "u" + text.Draw(t, "uid"),
		PodUID:            text.Draw(t, "pod uid"),
		Name:              text.Draw(t, "name"),
		Namespace:         part.Draw(t, "namespace"),
		ServiceAccount:    rapid.OneOf(part, rapid.Just("default")).Draw(t, "account"),
		TrustDomain:       rapid.OneOf(part, rapid.Just(model.DefaultTrustDomain)).Draw(t, "trust domain"),
		Addresses:         list(t, address, "addresses"),
		Hostname:          text.Draw(t, "hostname"),
		Network:           text.Draw(t, "network"),
		ClusterID:         text.Draw(t, "cluster"),
		Node:              text.Draw(t, "node"),
		Locality:          model.Locality{Region: text.Draw(t, "region"), Zone: text.Draw(t, "zone"), Subzone: text.Draw(t, "subzone")},
		Protocol:          rapid.SampledFrom([]model.Protocol{model.ProtocolTCP, model.ProtocolHBONE}).Draw(t, "protocol"),
		HostNetwork:       rapid.Bool().Draw(t, "host network"),
		Unhealthy:         rapid.Bool().Draw(t, "unhealthy"),
		Terminating:       rapid.Bool().Draw(t, "terminating"),
		Capacity:          rapid.Uint32().Draw(t, "capacity"),
		CanonicalName:     text.Draw(t, "canonical name"),
		CanonicalRevision: text.Draw(t, "canonical revision"),
		WorkloadType:      rapid.SampledFrom([]model.WorkloadType{model.TypeDeployment, model.TypeCronJob, model.TypePod, model.TypeJob}).Draw(t, "type"),
		WorkloadName:      text.Draw(t, "workload name"),
		Services:          drawServices(t, ports),
		Policies:          list(t, text, "policies"),
		Labels:            drawMap(t, text, "labels"),
		SkipInbound:       list(t, portRange, "skip inbound"),
		SkipOutbound:      list(t, portRange, "skip outbound"),
		SkipOutboundCIDRs: list(t, prefix, "skip cidrs"),
		SkippedBy: rapid.Ptr(rapid.Map(text, func(by string) model.SkippedBy {
			return model.SkippedBy{Inbound: by + "in", Outbound: by + "out", OutboundCIDRs: by}
		}), true).Draw(t, "skipped by"),
		Paths:          rapid.SampledFrom([]model.PathNormalization{model.NormalizeBase, model.NormalizeMergeSlashes, model.NormalizeDecodeAndMergeSlashes, model.NormalizeNone}).Draw(t, "paths"),
		Waypoint:       rapid.Ptr(gateway, true).Draw(t, "waypoint"),
		NetworkGateway: rapid.Ptr(gateway, true).Draw(t, "network gateway"),
		Tunnel: rapid.Ptr(rapid.Map(rapid.Uint16(), func(port uint16) model.ApplicationTunnel {
			return model.ApplicationTunnel{Port: port, PROXY: port%2 == 0}
		}), true).Draw(t, "tunnel"),
	}
}

func drawService(t *rapid.T) *model.Service {
	networkAddress := rapid.Custom(func(t *rapid.T) model.NetworkAddress {
		return model.NetworkAddress{Network: text.Draw(t, "network"), Prefix: prefix.Draw(t, "prefix")}
	})
	return &model.Service{
		Name:      text.Draw(t, "name"),
		Namespace: part.Draw(t, "namespace"),
		Hostname:  part.Draw(t, "hostname"),
		Addresses: list(t, networkAddress, "addresses"),
		Ports:     list(t, servicePort, "ports"),
		SANs:      list(t, text, "sans"),
		Canonical: rapid.Bool().Draw(t, "canonical"),
		Private:   rapid.Bool().Draw(t, "private"),
		Balance:   rapid.SampledFrom([]model.BalanceMode{model.BalanceAny, model.BalanceStrict, model.BalanceFailover, model.BalancePassthrough}).Draw(t, "balance"),
		Prefer:    list(t, rapid.SampledFrom([]model.Scope{model.ScopeRegion, model.ScopeZone, model.ScopeSubzone, model.ScopeNode, model.ScopeCluster, model.ScopeNetwork}), "prefer"),
		Unhealthy: rapid.Bool().Draw(t, "unhealthy"),
		Affinity:  time.Duration(rapid.Uint32().Draw(t, "affinity")) * time.Second,
		Waypoints: list(t, weighted, "waypoints"),
	}
}

func drawPolicy(t *rapid.T) *model.Policy {
	match := rapid.Custom(drawMatch)
	clause := rapid.Custom(func(t *rapid.T) model.Clause { return model.Clause{Matches: list(t, match, "matches")} })
	rule := rapid.Custom(func(t *rapid.T) model.Rule { return model.Rule{Clauses: list(t, clause, "clauses")} })
	p := &model.Policy{
		Name:      part.Draw(t, "name"),
		Namespace: part.Draw(t, "namespace"),
		Scope:     rapid.SampledFrom([]model.PolicyScope{model.ScopeGlobal, model.ScopeNamespace, model.ScopeSelector}).Draw(t, "scope"),
		DryRun:    rapid.Bool().Draw(t, "dry run"),
		Rules:     list(t, rule, "rules"),
		Unknown:   text.Draw(t, "unknown"),
		Ports:     list(t, port, "ports"),
	}
	drawAction(t, p)
	return p
}

func drawMatch(t *rapid.T) model.Match {
	return model.Match{
		Namespaces:          list(t, stringMatch, "namespaces"),
		NotNamespaces:       list(t, stringMatch, "not namespaces"),
		Principals:          list(t, stringMatch, "principals"),
		NotPrincipals:       list(t, stringMatch, "not principals"),
		ServiceAccounts:     list(t, account, "accounts"),
		NotServiceAccounts:  list(t, account, "not accounts"),
		SourceIPs:           list(t, prefix, "source ips"),
		NotSourceIPs:        list(t, prefix, "not source ips"),
		DestinationIPs:      list(t, prefix, "destination ips"),
		NotDestinationIPs:   list(t, prefix, "not destination ips"),
		DestinationPorts:    list(t, port, "ports"),
		NotDestinationPorts: list(t, port, "not ports"),
		SourceLabels:        list(t, label, "labels"),
		NotSourceLabels:     list(t, label, "not labels"),
		Times:               list(t, window, "times"),
		NotTimes:            list(t, window, "not times"),
		HTTP:                rapid.OneOf(rapid.Just[*model.HTTPMatch](nil), rapid.Custom(drawHTTPMatch)).Draw(t, "http"),
		Unknown:             text.Draw(t, "unknown"),
	}
}

var prefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
var addresses = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestWorkloadRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawWorkload(t)
		got, service, err := DecodeAddress(want.UID, encoded(t, want, EncodeWorkload))
		if err != nil || service != nil {
			t.Fatalf("decoded a service %v, error %v", service, err)
		}
		if diff := cmp.Diff(want, got, prefixes, addresses); diff != "" {
			t.Fatalf("-sent +received:\n%s", diff)
		}
	})
}

func TestServiceRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawService(t)
		w, got, err := DecodeAddress(want.Key(), encoded(t, want, EncodeService))
		if err != nil || w != nil {
			t.Fatalf("decoded a workload %v, error %v", w, err)
		}
		if diff := cmp.Diff(want, got, prefixes, addresses); diff != "" {
			t.Fatalf("-sent +received:\n%s", diff)
		}
	})
}

func TestPolicyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawPolicy(t)
		got, err := DecodePolicy(want.Key(), encoded(t, want, EncodePolicy))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, prefixes); diff != "" {
			t.Fatalf("-sent +received:\n%s", diff)
		}
	})
}

// encoded encodes twice: the bytes must be equal, so that a version can be
// made of them.
func encoded[M any](t *rapid.T, m M, encode func(M) (*anypb.Any, error)) *anypb.Any {
	t.Helper()
	a, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := encode(m); !bytes.Equal(a.Value, b.Value) {
		t.Fatalf("the same value gave different bytes:\n%x\n%x", a.Value, b.Value)
	}
	return a
}
