package client

import (
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// recorder is a sink that keeps what it is given.
type recorder struct {
	updates  chan model.Update
	snapshot *model.Snapshot // written by Apply alone; read after an answer
}

func newRecorder() *recorder {
	return &recorder{updates: make(chan model.Update, 100), snapshot: model.NewSnapshot()}
}

func (r *recorder) Apply(u model.Update) {
	r.snapshot = r.snapshot.Apply(u)
	r.updates <- u
}

// one is the only update since the last call.
func (r *recorder) one(t *testing.T) model.Update {
	t.Helper()
	if n := len(r.updates); n != 1 {
		t.Fatalf("%d updates applied, want one", n)
	}
	return <-r.updates
}

func (r *recorder) none(t *testing.T) {
	t.Helper()
	if n := len(r.updates); n != 0 {
		t.Fatalf("%d updates applied, want none: %+v", n, <-r.updates)
	}
}

func uids(list []*model.Workload) (out []string) {
	for _, w := range list {
		out = append(out, w.UID)
	}
	return out
}

func policyKeys(list []*model.Policy) (out []string) {
	for _, p := range list {
		out = append(out, p.Key())
	}
	return out
}

func aWorkload(uid, version string) *discovery.Resource {
	return res(uid, version, must(wire.EncodeWorkload(&model.Workload{UID: uid, Name: version, Namespace: "ns", TrustDomain: "td", ServiceAccount: "sa"})))
}

func aService(host, version string) *discovery.Resource {
	s := &model.Service{Name: version, Namespace: "ns", Hostname: host}
	return res(s.Key(), version, must(wire.EncodeService(s)))
}

// aPolicy differs by its port.
func aPolicy(name, version string, port uint16) *discovery.Resource {
	p := &model.Policy{Namespace: "ns", Name: name, Scope: model.ScopeNamespace, Action: model.ActionAllow,
		Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{DestinationPorts: []uint16{port}}}}}}}}
	return res(p.Key(), version, must(wire.EncodePolicy(p)))
}

func res(name, version string, body *anypb.Any) *discovery.Resource {
	return &discovery.Resource{Name: name, Version: version, Resource: body}
}

// bad is a resource whose content is under another name.
func bad(name, version string, of *discovery.Resource) *discovery.Resource {
	return res(name, version, of.GetResource())
}

func must[T any](a T, err error) T {
	if err != nil {
		panic(err)
	}
	return a
}

func addresses(nonce string, r ...*discovery.Resource) *discovery.DeltaDiscoveryResponse {
	return &discovery.DeltaDiscoveryResponse{TypeUrl: wire.AddressType, Nonce: nonce, Resources: r}
}

func policies(nonce string, r ...*discovery.Resource) *discovery.DeltaDiscoveryResponse {
	return &discovery.DeltaDiscoveryResponse{TypeUrl: wire.AuthorizationType, Nonce: nonce, Resources: r}
}

func removing(r *discovery.DeltaDiscoveryResponse, names ...string) *discovery.DeltaDiscoveryResponse {
	r.RemovedResources = names
	return r
}
