package client

import (
	"net/netip"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// What contradicts something else is no error of a resource: the later word
// counts, in whatever order the rest comes.
func TestContradictions(t *testing.T) {
	addr := netip.MustParseAddr("198.18.1.1")
	workload := func(uid, name string, services map[string][]model.Port) *discovery.Resource {
		return res(uid, name, must(wire.EncodeWorkload(&model.Workload{
			UID: uid, Name: name, Namespace: "ns", TrustDomain: "td", ServiceAccount: "sa", Addresses: []netip.Addr{addr}, Services: services,
		})))
	}
	service := func(ports ...model.Port) *discovery.Resource {
		v := &model.Service{Name: "h", Namespace: "ns", Hostname: "h", Ports: ports, Addresses: []model.NetworkAddress{{Prefix: netip.PrefixFrom(addr.Next(), 32)}}}
		return res(v.Key(), "1", must(wire.EncodeService(v)))
	}
	named := map[string][]model.Port{"ns/h": {{Service: 80, Target: 0}}}
	for name, tt := range map[string]struct {
		resources []*discovery.Resource
		check     func(*model.Snapshot) bool
	}{
		"one UID twice": {
			[]*discovery.Resource{workload("a", "first", nil), workload("a", "second", nil)},
			func(s *model.Snapshot) bool { return len(s.Workloads()) == 1 && s.Workload("a").Name == "second" },
		},
		"one address twice": {
			[]*discovery.Resource{workload("a", "first", nil), workload("b", "second", nil)},
			func(s *model.Snapshot) bool {
				later := s.WorkloadAt("", addr).Name == "second"
				s = s.Apply(model.Update{RemovedAddresses: []string{"b"}})
				return later && s.WorkloadAt("", addr).Name == "first"
			},
		},
		"a service twice": {
			[]*discovery.Resource{service(model.Port{Service: 80, Target: 1}), service(model.Port{Service: 80, Target: 2})},
			func(s *model.Snapshot) bool { return len(s.Services()) == 1 && s.Service("ns/h").Ports[0].Target == 2 },
		},
		"a service without ports": {
			[]*discovery.Resource{service()},
			func(s *model.Snapshot) bool {
				return len(s.Service("ns/h").Ports) == 0 && len(s.ServicesAt("", addr.Next())) == 1
			},
		},
		"ports that lead to 0": {
			[]*discovery.Resource{service(model.Port{Service: 80}), workload("a", "first", named)},
			func(s *model.Snapshot) bool {
				for e := range s.Endpoints("ns/h") {
					return e.Ports[0].Target == 0
				}
				return false
			},
		},
		"an endpoint ahead of its service": {
			[]*discovery.Resource{workload("a", "first", named), service(model.Port{Service: 80})},
			func(s *model.Snapshot) bool {
				for e := range s.Endpoints("ns/h") {
					return e.Workload.UID == "a" && s.Service("ns/h") != nil
				}
				return false
			},
		},
		"a workload and a service of one name": {
			[]*discovery.Resource{workload("ns/h", "first", nil), service()},
			func(s *model.Snapshot) bool { return s.Workload("ns/h") != nil || s.Service("ns/h") != nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			sink := newRecorder()
			c := New(Config{Sink: sink})
			if answers := c.handle(addresses("1", tt.resources...)); answers[0].GetErrorDetail() != nil {
				t.Fatalf("rejected: %s", answers[0].GetErrorDetail().GetMessage())
			}
			if s := model.NewSnapshot().Apply(sink.one(t)); !tt.check(s) {
				t.Errorf("the mesh is %+v, %+v", s.Workloads(), s.Services())
			}
		})
	}
}
