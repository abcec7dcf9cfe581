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
