package proxy

import (
	"net/netip"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/xds/model"
)

// A pooled connection is kept as long as it leads to the very pod that it was
// opened to. Others than that pod may have its address: those that share their
// node's network have one together, by which none of them is found.
func TestMoved(t *testing.T) {
	peer := func(edits ...func(*model.Workload)) *model.Workload {
		w := &model.Workload{UID: "k//Pod/infra/peer", PodUID: "1", Network: "near", Addresses: []netip.Addr{arrived4}, Protocol: model.ProtocolHBONE}
		for _, edit := range edits {
			edit(w)
		}
		return w
	}
	onHost := func(w *model.Workload) { w.HostNetwork, w.Protocol = true, model.ProtocolTCP }
	plain := func(w *model.Workload) { w.Protocol = model.ProtocolTCP }
	replaced := func(w *model.Workload) { w.PodUID = "2" }
	unnumbered := func(w *model.Workload) { w.PodUID = "" } // as istiod sends them
	elsewhere := func(w *model.Workload) { w.Addresses = []netip.Addr{arrived4.Next()} }
	other := func(w *model.Workload) { w.UID = "k//Pod/infra/other" }
	both := func(w ...*model.Workload) []*model.Workload { return w }
	for name, tt := range map[string]struct {
		to      *model.Workload
		gateway bool
		now     []*model.Workload
		want    bool
	}{
		"a pod that stays":                             {peer(), false, both(peer()), false},
		"a pod without a UID of its own":               {peer(unnumbered), false, both(peer(unnumbered)), false},
		"a pod that is gone":                           {peer(), false, nil, true},
		"a pod that takes none any more":               {peer(), false, both(peer(plain)), true},
		"a pod of the same name":                       {peer(), false, both(peer(replaced)), true},
		"a pod with another address":                   {peer(), false, both(peer(elsewhere)), true},
		"a pod with its address at another":            {peer(), false, both(peer(), peer(other)), true},
		"a gateway that stays":                         {peer(plain), true, both(peer(plain)), false},
		"a gateway that is gone":                       {peer(plain), true, nil, true},
		"a gateway of the same name":                   {peer(plain), true, both(peer(plain, replaced)), true},
		"a gateway with another address":               {peer(plain), true, both(peer(plain, elsewhere)), true},
		"a gateway with its address at another":        {peer(plain), true, both(peer(plain), peer(other)), true},
		"a gateway on its node's network":              {peer(onHost), true, both(peer(onHost)), false},
		"a gateway beside another on its node":         {peer(onHost), true, both(peer(onHost), peer(onHost, other)), false},
		"a gateway on its node's network that is gone": {peer(onHost), true, both(peer(onHost, other)), true},
		"a gateway on its node's network, replaced":    {peer(onHost), true, both(peer(onHost, replaced)), true},
		"a gateway on its node's network, on another":  {peer(onHost), true, both(peer(onHost, elsewhere)), true},
		"a gateway that went to its node's network":    {peer(plain), true, both(peer(onHost)), false},
	} {
		s := model.NewSnapshot()
		for _, w := range tt.now {
			s = s.Apply(model.Update{Workloads: []*model.Workload{w}})
		}
		k := hbone.Key{DestinationUID: tunnelUID(tt.to, tt.gateway), Destination: netip.AddrPortFrom(arrived4, 15008)}
		if got := moved(s, k); got != tt.want {
			t.Errorf("%s: moved is %v, want %v", name, got, tt.want)
		}
	}
}
