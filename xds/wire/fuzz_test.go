package wire

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/api/workload"
	"github.com/tacit-mesh/tacit/xds/model"
)

// FuzzPolicy: whatever the bytes, there is either no policy key or a policy,
// and what was decoded without an unknown part survives another round.
func FuzzPolicy(f *testing.F) {
	f.Add("ns/p", mustPack(fullAuthorization(fullExtension())).Value)
	f.Add("ns/p", mustPack(fullAuthorization(&tacit.MatchExtension{Unknown: "x"})).Value)
	f.Add("ns/p", []byte{0x18, 0x07})
	f.Add("", []byte(nil))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		p, err := DecodePolicy(name, &anypb.Any{TypeUrl: AuthorizationType, Value: value})
		if err != nil {
			if p != nil && (p.Unknown == "" || p.Action != model.ActionDeny || p.Key() != name) {
				t.Fatalf("rejected, but stands for %+v", p)
			}
			return
		}
		if p.Key() != name {
			t.Fatalf("policy %q under the name %q", p.Key(), name)
		}
		if len(unknowns(p)) > 0 {
			return
		}
		again, err := EncodePolicy(p)
		if err != nil {
			t.Fatal(err)
		}
		q, err := DecodePolicy(name, again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, q, prefixes); diff != "" {
			t.Fatalf("changed by another round:\n%s", diff)
		}
	})
}

func FuzzAddress(f *testing.F) {
	f.Add("u", packWorkload(&workload.Workload{Uid: "u", Namespace: "ns", Addresses: [][]byte{mapped(1, 2, 3, 4)}}).Value)
	f.Add("u", packWorkload(&workload.Workload{Uid: "u", Namespace: "ns", Waypoint: &workload.GatewayAddress{}}).Value)
	f.Add("ns/h", packService(&workload.Service{Namespace: "ns", Hostname: "h", Ports: []*workload.Port{{ServicePort: 80}}}).Value)
	f.Add("", []byte(nil))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		w, v, err := DecodeAddress(name, &anypb.Any{TypeUrl: AddressType, Value: value})
		if err != nil {
			if (w != nil || v != nil) && len(gatewaysOf(w, v)) == 0 {
				t.Fatalf("rejected, but in the open: %+v, %+v", w, v)
			}
			return
		}
		var again *anypb.Any
		if w != nil {
			again, err = EncodeWorkload(w)
		} else {
			again, err = EncodeService(v)
		}
		if err != nil {
			t.Fatal(err)
		}
		w2, v2, err := DecodeAddress(name, again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(w, w2, prefixes, addresses); diff != "" {
			t.Fatalf("changed by another round:\n%s", diff)
		}
		if diff := cmp.Diff(v, v2, prefixes, addresses); diff != "" {
			t.Fatalf("changed by another round:\n%s", diff)
		}
	})
}
