package policy

import (
	"net/netip"
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

// X-Forwarded-For is believed from those who are trusted with it, counted from
// its end; what it leaves open errs on the closed side.
func TestForwardedFor(t *testing.T) {
	gateway := model.Identity{TrustDomain: "cluster.local", Namespace: "ingress", ServiceAccount: "gateway"}
	trusted := func(proxies uint32) model.Forwarding {
		return model.Forwarding{Proxies: proxies, Callers: texts("cluster.local/ns/ingress/*")}
	}
	for _, test := range []struct {
		name         string
		forwarding   model.Forwarding
		caller       model.Identity
		lines        []string
		allows, lets bool // what ALLOW and DENY for 192.0.2.0/24 make of it
	}{
		{"told by a trusted caller", trusted(1), gateway, []string{"192.0.2.7"}, true, false},
		{"other client", trusted(1), gateway, []string{"198.51.100.7"}, false, true},
		{"the last counts", trusted(1), gateway, []string{"192.0.2.7, 198.51.100.7"}, false, true},
		{"forged in front", trusted(1), gateway, []string{"192.0.2.7", "198.51.100.7"}, false, true},
		{"two proxies", trusted(2), gateway, []string{"192.0.2.7,198.51.100.7"}, true, false},
		{"two proxies, two lines", trusted(2), gateway, []string{"10.9.9.9, 192.0.2.7", "198.51.100.7"}, true, false},
		{"two proxies, three addresses", trusted(2), gateway, []string{"10.9.9.9, 192.0.2.7, 198.51.100.7"}, true, false},
		{"too few", trusted(2), gateway, []string{"192.0.2.7"}, false, false},
		{"no header", trusted(1), gateway, nil, false, false},
		{"no address", trusted(1), gateway, []string{"192.0.2.7, unknown"}, false, false},
		{"an empty element", trusted(1), gateway, []string{"192.0.2.7,"}, false, false},
		{"with a port", trusted(1), gateway, []string{"192.0.2.7:1234"}, true, false},
		{"IPv4 within IPv6", trusted(1), gateway, []string{"::ffff:192.0.2.7"}, true, false},
		{"in brackets", trusted(1), gateway, []string{"[2001:db8::1]"}, false, true},
		{"in brackets, with a port", trusted(1), gateway, []string{"[2001:db8::1]:80"}, false, true},
		{"told by anybody", trusted(1), client, []string{"192.0.2.7"}, false, true},
		{"told by nobody", trusted(1), model.Identity{}, []string{"192.0.2.7"}, false, true},
		{"nobody is trusted", model.Forwarding{}, gateway, []string{"192.0.2.7"}, false, true},
		{"nobody is counted", model.Forwarding{Callers: texts("*")}, gateway, []string{"192.0.2.7"}, false, true},
	} {
		r := request()
		r.Identity = test.caller
		r.HTTP = &HTTPRequest{Method: "GET", Path: "/"}
		for _, line := range test.lines {
			r.HTTP.Headers = append(r.HTTP.Headers, HeaderField{Name: "x-Forwarded-For", Value: line})
		}
		for _, not := range []bool{false, true} {
			h := &model.HTTPMatch{RemoteIPs: cidrs("192.0.2.0/24"), Forwarding: test.forwarding}
			allows, lets := test.allows, test.lets
			if known := test.allows != test.lets; not {
				h = &model.HTTPMatch{NotRemoteIPs: h.RemoteIPs, Forwarding: test.forwarding}
				if known {
					allows, lets = lets, allows
				}
			}
			for action, want := range map[model.Action]bool{model.ActionAllow: allows, model.ActionDeny: lets} {
				s := world(destination(), named("p", action, when(either(model.Match{HTTP: h}))))
				if d := Evaluate(s, &r); d.Allowed != want {
					t.Errorf("%s, not %v, action %d: %v", test.name, not, action, d)
				}
			}
		}
	}
}

// A connection that carries no HTTP has one client: whoever it is from.
func TestRemoteAddressWithoutHTTP(t *testing.T) {
	h := &model.HTTPMatch{RemoteIPs: cidrs("10.0.0.1/32"), Forwarding: model.Forwarding{Proxies: 1, Callers: texts("td/ns/other/*")}}
	s := world(destination(), named("p", model.ActionAllow, when(either(model.Match{HTTP: h}))))
	r := request()
	if !CoversHTTP(s, destination(), r.Destination.Port()) || !EvaluateConnection(s, &r).Allowed || !Evaluate(s, &r).Allowed {
		t.Errorf("from the address: %v", Evaluate(s, &r))
	}
	r.Source = netip.MustParseAddr("10.0.0.2")
	if !EvaluateConnection(s, &r).Allowed {
		t.Error("denied before its first request, which might name the address")
	}
	if d := Evaluate(s, &r); d.Allowed || d.Attribute != "remoteIpBlocks" {
		t.Errorf("from another address: %+v", d)
	}
	h.Forwarding.Callers = texts("*")
	r.Source = netip.MustParseAddr("10.0.0.1")
	if d := Evaluate(s, &r); d.Allowed || d.Attribute != "remoteIpBlocks" {
		t.Errorf("from a trusted proxy that does not speak HTTP, which says nothing of its client: %+v", d)
	}
}
