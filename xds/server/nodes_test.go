package server

import (
	"context"
	"slices"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// Proxies that do not know of extensions are sent policies without, others
// whatever they understand of them; both are told apart by node.
func TestExtensionsByNode(t *testing.T) {
	allow := &model.Policy{Namespace: "ns", Name: "p", Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{
		{Namespaces: []model.StringMatch{{Value: "a"}}, SourceLabels: []model.LabelMatch{{Key: "app", Values: []model.StringMatch{{Value: "x"}}}}},
	}}}}}}
	s := New(zap.NewNop(), func(ctx context.Context) string {
		md, _ := metadata.FromIncomingContext(ctx)
		return md.Get("node")[0]
	})
	apply(t, s, first(model.Update{Policies: []*model.Policy{allow}}))
	dial := serve(t, s)
	rules := func(node string, fields map[string]*structpb.Value) int {
		t.Helper()
		c := connectAs(t, dial(), node)
		c.node = &core.Node{Id: node, Metadata: &structpb.Struct{Fields: fields}}
		c.ask(wire.AuthorizationType, nil)
		c.ask(wire.AddressType, nil)
		r := c.next(wire.AuthorizationType, []string{"ns/p"}, nil)
		p, err := wire.DecodePolicy("ns/p", r.Resources[0].Resource)
		if err != nil {
			t.Fatal(err)
		}
		return len(p.Rules)
	}
	if n := rules("ztunnel", nil); n != 0 {
		t.Errorf("a proxy that passes over extensions is sent %d rules, want none", n)
	}
	if n := rules("new", map[string]*structpb.Value{wire.ExtensionsKey: structpb.NewStringValue(wire.Extensions())}); n != 1 {
		t.Errorf("a proxy of this version is sent %d rules, want 1", n)
	}
	if n := rules("old", map[string]*structpb.Value{wire.ExtensionsKey: structpb.NewStringValue("tacit.mesh/policy=1")}); n != 1 {
		t.Errorf("a proxy that denies by unknown extensions is sent %d rules, want 1", n)
	}
	if got := s.Lacking(allow); !slices.Equal(got, []string{"old", "ztunnel"}) {
		t.Errorf("lacking: %q", got)
	}
	if got := s.Lacking(policy("plain")); len(got) > 0 {
		t.Errorf("lacking for a policy without extensions: %q", got)
	}
}

// What a policy about requests is to proxies of this version, of the one before,
// and to such as pass over extensions; and what a proxy of the version before
// makes of the whole of it.
func TestVersionsOfHTTP(t *testing.T) {
	get := &model.HTTPMatch{Methods: []model.StringMatch{{Value: "GET"}}}
	match := model.Match{DestinationPorts: []uint16{80}, SourceLabels: []model.LabelMatch{{Key: "app", Values: []model.StringMatch{{Value: "x"}}}}, HTTP: get}
	rules := []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{match}}}}}
	policies := []*model.Policy{
		{Namespace: "ns", Name: "allow", Rules: rules},
		{Namespace: "ns", Name: "custom", Action: model.ActionCustom, Rules: rules, Provider: &model.Provider{Name: "p", Host: "h", Port: 1, Timeout: time.Second}},
		{Namespace: "ns", Name: "deny", Action: model.ActionDeny, Rules: rules},
		{Namespace: "ns", Name: "tokens", Action: model.ActionAuthenticate, Authentication: &model.RequestAuthentication{Rules: []model.JWTRule{{Issuer: "i"}}}},
	}
	s := New(zap.NewNop(), func(ctx context.Context) string {
		md, _ := metadata.FromIncomingContext(ctx)
		return md.Get("node")[0]
	})
	apply(t, s, first(model.Update{Policies: policies}))
	dial := serve(t, s)
	received := func(node string, fields map[string]*structpb.Value) map[string]*model.Policy {
		t.Helper()
		c := connectAs(t, dial(), node)
		c.node = &core.Node{Id: node, Metadata: &structpb.Struct{Fields: fields}}
		c.ask(wire.AuthorizationType, nil)
		c.ask(wire.AddressType, nil)
		out := map[string]*model.Policy{}
		for _, r := range c.next(wire.AuthorizationType, []string{"ns/allow", "ns/custom", "ns/deny", "ns/tokens"}, nil).Resources {
			p, err := wire.DecodePolicy(r.Name, r.Resource)
			if err != nil {
				t.Fatal(err)
			}
			out[p.Name] = p
		}
		return out
	}
	announce := func(extensions string) map[string]*structpb.Value {
		return map[string]*structpb.Value{wire.ExtensionsKey: structpb.NewStringValue(extensions)}
	}
	before := "tacit.mesh/match=1,tacit.mesh/policy=1,tacit.mesh/service=1,tacit.mesh/workload=1"
	for node, test := range map[string]struct {
		fields map[string]*structpb.Value
		http   bool
		labels bool
	}{"now": {announce(wire.Extensions()), true, true}, "before": {announce(before), false, true}, "ztunnel": {nil, false, false}} {
		got := received(node, test.fields)
		if n := len(got["allow"].Rules); (n > 0) != test.http {
			t.Errorf("%s: ALLOW has %d rules", node, n)
		}
		for _, name := range []string{"deny", "custom"} {
			m := got[name].Rules[0].Clauses[0].Matches[0]
			if (m.HTTP != nil) != test.http || (len(m.SourceLabels) > 0) != test.labels || len(m.DestinationPorts) != 1 || m.Unknown != "" {
				t.Errorf("%s: %s matches %+v", node, name, m)
			}
		}
		if action := got["custom"].Action; (action == model.ActionCustom) != test.http || !test.http && action != model.ActionDeny {
			t.Errorf("%s: CUSTOM has action %d", node, action)
		}
		if p := got["tokens"]; (p.Authentication != nil) != test.http || len(p.Rules) > 0 || p.Unknown != "" {
			t.Errorf("%s: tokens are %+v", node, p)
		}
	}
	for _, p := range policies {
		if got := s.Lacking(p); !slices.Equal(got, []string{"before", "ztunnel"}) {
			t.Errorf("%s is lacking on %q", p.Name, got)
		}
	}
}

// That a proxy has gone is news.
func TestNodesChanged(t *testing.T) {
	s := started(t, model.Update{})
	c := connect(t, serve(t, s)())
	c.ask(wire.AuthorizationType, nil)
	c.ask(wire.AddressType, nil)
	c.next(wire.AuthorizationType, nil, nil)
	<-s.NodesChanged()
	c.hangUp()
	select {
	case <-s.NodesChanged():
	case <-time.After(patience):
		t.Error("nobody was told that the proxy has gone")
	}
}
