package wire

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tacit-mesh/tacit/xds/api/security"
	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/api/workload"
	"github.com/tacit-mesh/tacit/xds/model"
)

func packWorkload(w *workload.Workload) *anypb.Any {
	return mustPack(&workload.Address{Type: &workload.Address_Workload{Workload: w}})
}

func packService(v *workload.Service) *anypb.Any {
	return mustPack(&workload.Address{Type: &workload.Address_Service{Service: v}})
}

func mapped(a, b, c, d byte) []byte {
	return append(append(make([]byte, 10), 0xff, 0xff), a, b, c, d)
}

func TestWorkloadDefaults(t *testing.T) {
	w := &workload.Workload{Uid: "u", Namespace: "ns", Addresses: [][]byte{mapped(10, 0, 0, 1)}, WorkloadType: 99,
		Services: map[string]*workload.PortList{"ns/h": {Ports: []*workload.Port{{ServicePort: 80, AppProtocol: 99}}}}}
	got, _, err := DecodeAddress("u", packWorkload(w))
	if err != nil {
		t.Fatal(err)
	}
	want := &model.Workload{
		UID: "u", Namespace: "ns", TrustDomain: "cluster.local", ServiceAccount: "default", Capacity: 1,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, WorkloadType: model.TypePod,
		Services: map[string][]model.Port{"ns/h": {{Service: 80}}},
	}
	if diff := cmp.Diff(want, got, addresses); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestServiceDefaults(t *testing.T) {
	length := uint32(104)
	v := &workload.Service{Namespace: "ns", Hostname: "h", Addresses: []*workload.NetworkAddress{
		{Address: []byte{10, 0, 0, 1}},
		{Address: mapped(10, 0, 0, 2)},
		{Address: mapped(10, 1, 2, 3), Length: &length},
	}}
	_, got, err := DecodeAddress("ns/h", packService(v))
	if err != nil {
		t.Fatal(err)
	}
	want := &model.Service{Namespace: "ns", Hostname: "h", Addresses: []model.NetworkAddress{
		{Prefix: netip.MustParsePrefix("10.0.0.1/32")},
		{Prefix: netip.MustParsePrefix("10.0.0.2/32")},
		{Prefix: netip.MustParsePrefix("10.0.0.0/8")},
	}}
	if diff := cmp.Diff(want, got, prefixes); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Fields and extensions of a later version do not keep a workload or a
// service from working.
func TestLaterFieldsOfAddresses(t *testing.T) {
	later := protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)
	ext := &tacit.WorkloadExtension{PodUid: "pod"}
	ext.ProtoReflect().SetUnknown(later)
	w := &workload.Workload{Uid: "u", Namespace: "ns", Extensions: []*workload.Extension{
		{Name: "example.com/other", Config: mustPack(&tacit.PortRange{})}, {Name: workloadExtension, Config: mustPack(ext)},
	}}
	w.ProtoReflect().SetUnknown(later)
	got, _, err := DecodeAddress("u", packWorkload(w))
	if err != nil || got.PodUID != "pod" {
		t.Errorf("workload %+v, error %v", got, err)
	}
	v := &workload.Service{Namespace: "ns", Hostname: "h", Extensions: []*workload.Extension{{Name: "example.com/other"}}}
	v.ProtoReflect().SetUnknown(later)
	if _, _, err := DecodeAddress("ns/h", packService(v)); err != nil {
		t.Error(err)
	}
}

func TestBadWorkloads(t *testing.T) {
	ext := func(m proto.Message) func(*workload.Workload) {
		return func(w *workload.Workload) {
			w.Extensions = []*workload.Extension{{Name: workloadExtension, Config: mustPack(m)}}
		}
	}
	ports := func(p ...*workload.Port) func(*workload.Workload) {
		return func(w *workload.Workload) {
			w.Services = map[string]*workload.PortList{"ns/h": {Ports: p}}
		}
	}
	tests := map[string]struct {
		change func(*workload.Workload)
		want   string
	}{
		"no uid":           {func(w *workload.Workload) { w.Uid = "" }, "uid is missing"},
		"other uid":        {func(w *workload.Workload) { w.Uid = "v" }, "not the resource's name"},
		"no namespace":     {func(w *workload.Workload) { w.Namespace = "" }, "identity"},
		"account":          {func(w *workload.Workload) { w.ServiceAccount = "a/b" }, "identity"},
		"trust domain":     {func(w *workload.Workload) { w.TrustDomain = "a b" }, "identity"},
		"legacy mTLS":      {func(w *workload.Workload) { w.TunnelProtocol = 2 }, "LEGACY_ISTIO_MTLS"},
		"tunnel":           {func(w *workload.Workload) { w.TunnelProtocol = 3 }, "tunnel_protocol 3"},
		"status":           {func(w *workload.Workload) { w.Status = 2 }, "status 2"},
		"network mode":     {func(w *workload.Workload) { w.NetworkMode = 2 }, "network_mode 2"},
		"short address":    {func(w *workload.Workload) { w.Addresses = [][]byte{{1, 2, 3, 4}, {1, 2, 3}} }, "addresses[1]: address of 3 bytes"},
		"empty address":    {func(w *workload.Workload) { w.Addresses = [][]byte{{}} }, "addresses[0]"},
		"service port":     {ports(&workload.Port{ServicePort: 65536}), `services["ns/h"].ports[0]: service_port`},
		"service port 0":   {ports(&workload.Port{TargetPort: 80}), "service_port"},
		"target port":      {ports(&workload.Port{ServicePort: 80}, &workload.Port{ServicePort: 81, TargetPort: 1<<16 + 80}), "ports[1]: target_port"},
		"skip port":        {ext(&tacit.WorkloadExtension{SkipInbound: []*tacit.PortRange{{First: 1, Last: 65536}}}), "skip_inbound[0]"},
		"reversed range":   {ext(&tacit.WorkloadExtension{SkipOutbound: []*tacit.PortRange{{First: 2, Last: 1}}}), "skip_outbound[0]: port range 2-1"},
		"skip prefix":      {ext(&tacit.WorkloadExtension{SkipOutboundCidrs: []*security.Address{{Address: []byte{1, 2, 3, 4}, Length: 33}}}), "skip_outbound_cidrs[0]"},
		"extension's type": {ext(wrapperspb.Bool(true)), "extension tacit.mesh/workload"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := &workload.Workload{Uid: "u", Namespace: "ns"}
			tt.change(w)
			got, _, err := DecodeAddress("u", packWorkload(w))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %+v, error %v; want an error with %q", got, err, tt.want)
			}
		})
	}
}

func TestBadServices(t *testing.T) {
	address := func(b []byte, length uint32) func(*workload.Service) {
		return func(v *workload.Service) { v.Addresses = []*workload.NetworkAddress{{Address: b, Length: &length}} }
	}
	balance := func(lb *workload.LoadBalancing) func(*workload.Service) {
		return func(v *workload.Service) { v.LoadBalancing = lb }
	}
	tests := map[string]struct {
		change func(*workload.Service)
		want   string
	}{
		"no namespace":     {func(v *workload.Service) { v.Namespace = "" }, "missing"},
		"no hostname":      {func(v *workload.Service) { v.Hostname = "" }, "missing"},
		"other key":        {func(v *workload.Service) { v.Hostname = "i" }, "not the resource's name"},
		"visibility":       {func(v *workload.Service) { v.Visibility = 2 }, "visibility 2"},
		"mode":             {balance(&workload.LoadBalancing{Mode: 4}), "mode 4"},
		"health":           {balance(&workload.LoadBalancing{HealthPolicy: 2}), "health_policy 2"},
		"scope":            {balance(&workload.LoadBalancing{RoutingPreference: []workload.LoadBalancing_Scope{1, 7}}), "routing_preference[1]"},
		"no scope":         {balance(&workload.LoadBalancing{RoutingPreference: []workload.LoadBalancing_Scope{0}}), "routing_preference[0]"},
		"short address":    {address([]byte{1}, 8), "addresses[0]: address of 1 bytes"},
		"length":           {address([]byte{1, 2, 3, 4}, 33), "addresses[0]: prefix length 33"},
		"mapped length":    {address(mapped(1, 2, 3, 4), 8), "IPv4-mapped"},
		"port":             {func(v *workload.Service) { v.Ports = []*workload.Port{{ServicePort: 70000}} }, "ports[0]: service_port"},
		"extension's type": {func(v *workload.Service) { v.Extensions = []*workload.Extension{{Name: serviceExtension}} }, "extension tacit.mesh/service"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v := &workload.Service{Namespace: "ns", Hostname: "h"}
			tt.change(v)
			_, got, err := DecodeAddress("ns/h", packService(v))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %+v, error %v; want an error with %q", got, err, tt.want)
			}
		})
	}
}

func TestNeitherWorkloadNorService(t *testing.T) {
	tests := map[string]*anypb.Any{
		"absent":     nil,
		"empty":      mustPack(&workload.Address{}),
		"other type": mustPack(&security.Authorization{}),
		"cut off":    {TypeUrl: AddressType, Value: []byte{0x0a, 0x7f}},
	}
	for name, r := range tests {
		t.Run(name, func(t *testing.T) {
			if w, v, err := DecodeAddress("u", r); err == nil {
				t.Errorf("accepted as %v, %v", w, v)
			}
		})
	}
}

func TestAffinityRoundsUp(t *testing.T) {
	r, err := EncodeService(&model.Service{Namespace: "ns", Hostname: "h", Affinity: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, v, err := DecodeAddress("ns/h", r); err != nil || v.Affinity != time.Second {
		t.Errorf("affinity of %v, error %v; want 1 s", v.Affinity, err)
	}
}
