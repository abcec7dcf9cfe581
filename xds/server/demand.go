package server

import (
	"net/netip"
	"slices"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/tacit-mesh/tacit/xds/model"
)

// A proxy may ask for addresses one by one, by the resource's own name or by
// "NETWORK/IP". With a service come its endpoints. (Istio's on-demand mode.)

// ofNode stands for the workloads of the stream's own node, which come unasked.
// Nobody can ask for it by name: every name has a slash.
const ofNode = ""

// demands are what one stream asks for, and what that stands for in one state.
// What a change of the mesh costs is what it changes of that.
type demands struct {
	node    string
	at      *state              // nil until the first
	names   map[string][]string // what each stands for
	namesOf map[string][]string // by which names a resource is wanted
	wanted  set
	// Names that stand for nothing, of which the proxy was told, and not yet.
	told, untold map[string]bool
	again        map[string]bool // names to be answered, whatever the proxy has already
}

func newDemands(node string, names map[string]struct{}) *demands {
	d := &demands{node: node, names: map[string][]string{}, told: map[string]bool{}, untold: map[string]bool{}, again: map[string]bool{}}
	if node != "" {
		d.names[ofNode] = nil
	}
	for name := range names {
		d.names[name] = nil
	}
	return d
}

// ask takes over what a request changes. Names are answered even if the proxy
// has what they stand for, which it may not know.
func (d *demands) ask(subscribe, unsubscribe []string) {
	touched := map[string]bool{}
	for _, name := range subscribe {
		if name != "*" && name != ofNode {
			d.again[name] = true
			delete(d.told, name)
			d.resolve(name, touched)
		}
	}
	for _, name := range unsubscribe {
		if _, asked := d.names[name]; asked && name != ofNode {
			d.stand(name, nil, touched)
			delete(d.names, name)
			delete(d.told, name)
			delete(d.untold, name)
			delete(d.again, name)
		}
	}
	d.collect(touched)
}

// bring takes what is wanted to another state.
func (d *demands) bring(s *state) {
	before := d.at
	if before == s {
		return
	}
	d.at = s
	touched := map[string]bool{}
	if before != nil && s.generation == before.generation+1 {
		for name := range d.concerned(before, touched) {
			d.resolve(name, touched)
		}
		d.collect(touched)
		return
	}
	d.namesOf, d.wanted = map[string][]string{}, set{all: newResources()}
	for name := range d.names {
		d.names[name] = nil
		d.resolve(name, touched)
	}
	d.collect(touched)
}

// concerned are the names that may stand for something else than in the state
// before, and notes the resources that are not what they were.
func (d *demands) concerned(before *state, touched map[string]bool) map[string]bool {
	out := map[string]bool{}
	add := func(names ...string) {
		for _, name := range names {
			if _, asked := d.names[name]; asked {
				out[name] = true
			}
		}
	}
	look := func(key string) {
		if wantedBy := d.namesOf[key]; len(wantedBy) > 0 {
			touched[key] = true
			add(wantedBy...)
		}
		for _, s := range []*state{before, d.at} {
			if w := s.snapshot.Workload(key); w != nil {
				d.concernedBy(w, add)
			}
			if v := s.snapshot.Service(key); v != nil {
				add(key)
				for _, a := range v.Addresses {
					d.within(a, add)
				}
			}
		}
	}
	for _, r := range d.at.addresses.changed {
		look(r.Name)
	}
	for _, key := range d.at.addresses.removed {
		look(key)
	}
	return out
}

// concernedBy adds the names that a workload has to do with.
func (d *demands) concernedBy(w *model.Workload, add func(...string)) {
	add(w.UID, w.Namespace+"/"+w.Hostname)
	if w.Node == d.node {
		add(ofNode)
	}
	for _, a := range w.Addresses {
		add(model.AddressName(w.Network, a))
	}
	for service := range w.Services {
		add(d.namesOf[service]...)
	}
}

// within adds the names of a service's virtual addresses.
func (d *demands) within(a model.NetworkAddress, add func(...string)) {
	if a.Prefix.IsSingleIP() {
		add(model.AddressName(a.Network, a.Prefix.Addr()))
		return
	}
	for name := range d.names {
		ip, ok := strings.CutPrefix(name, a.Network+"/")
		if addr, err := netip.ParseAddr(ip); ok && err == nil && a.Prefix.Contains(addr) {
			add(name)
		}
	}
}

// resolve finds what a name stands for now, and notes the resources that this
// concerns.
func (d *demands) resolve(name string, touched map[string]bool) {
	var stands []string
	switch {
	case d.at == nil:
	case name == ofNode:
		stands, _ = d.at.byNode.Get(d.node)
	default:
		d.at.snapshot.Named(name, func(key string) { stands = append(stands, key) })
	}
	d.stand(name, stands, touched)
	switch {
	case name == ofNode:
	case len(stands) > 0:
		delete(d.untold, name)
		delete(d.told, name)
	case !d.told[name]:
		d.untold[name] = true
	}
}

func (d *demands) stand(name string, now []string, touched map[string]bool) {
	for _, key := range d.names[name] {
		touched[key] = true
		if left := slices.DeleteFunc(d.namesOf[key], func(n string) bool { return n == name }); len(left) > 0 {
			d.namesOf[key] = left
		} else {
			delete(d.namesOf, key)
		}
	}
	for _, key := range now {
		touched[key] = true
		if !slices.Contains(d.namesOf[key], name) {
			d.namesOf[key] = append(d.namesOf[key], name)
		}
	}
	d.names[name] = now
}

// collect makes what is wanted of what was, with the resources that may differ.
func (d *demands) collect(touched map[string]bool) {
	if d.at == nil {
		return
	}
	n := set{all: d.wanted.all, before: d.wanted.all}
	for key := range touched {
		old, had := n.all.Get(key)
		now, exists := d.at.addresses.all.Get(key)
		switch exists = exists && len(d.namesOf[key]) > 0; {
		case exists && (!had || old.Version != now.Version):
			n.all = n.all.Set(key, now)
			n.changed = append(n.changed, now)
		case had && !exists:
			n.all = n.all.Delete(key)
			n.removed = append(n.removed, key)
		}
	}
	if n.all != n.before {
		d.wanted = n
	}
}

// answers adds what is to be said of names to what there is to send anyway.
func (d *demands) answers(changed []*discovery.Resource, removed []string) ([]*discovery.Resource, []string) {
	sent := map[string]bool{}
	for _, r := range changed {
		sent[r.Name] = true
	}
	changed, removed = slices.Clip(changed), slices.Clip(removed)
	for name := range d.again {
		for _, key := range d.names[name] {
			if r, ok := d.wanted.all.Get(key); ok && !sent[key] {
				sent[key] = true
				changed = append(changed, r)
			}
		}
	}
	for name := range d.untold {
		if !slices.Contains(removed, name) {
			removed = append(removed, name)
		}
	}
	return changed, removed
}

// answered notes that the answers are on their way.
func (d *demands) answered() {
	for name := range d.untold {
		d.told[name] = true
	}
	clear(d.untold)
	clear(d.again)
}
