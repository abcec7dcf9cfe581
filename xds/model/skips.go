package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// SkipMode says which skip annotations the operator accepts.
type SkipMode string

// The modes, from the widest to the narrowest. Any other value means
// SkipsNone.
const (
	SkipsAny    SkipMode = "any"
	SkipsListed SkipMode = "listed" // only the ports that the operator lists
	SkipsNone   SkipMode = "none"
)

// ParseSkipMode reads a mode by name.
func ParseSkipMode(s string) (SkipMode, error) {
	switch m := SkipMode(s); m {
	case SkipsAny, SkipsListed, SkipsNone:
		return m, nil
	}
	return SkipsNone, fmt.Errorf("skips %q: want any, listed or none", s)
}

func (m SkipMode) width() int {
	switch m {
	case SkipsAny:
		return 2
	case SkipsListed:
		return 1
	}
	return 0
}

// SkipSettings are the mesh operator's: which skips pods may ask for.
type SkipSettings struct {
	Mode   SkipMode
	Listed PortSet // what SkipsListed accepts, in both directions
}

// Skips are the ports and destinations of a pod that are not captured.
type Skips struct {
	Inbound       PortSet
	Outbound      PortSet
	OutboundCIDRs []netip.Prefix
}

// SkippedBy names the annotations that the lists of Skips come from, for people;
// each is empty where its list is.
type SkippedBy struct{ Inbound, Outbound, OutboundCIDRs string }

// skipsAnnotation, on a namespace, narrows the mesh's mode there.
const skipsAnnotation = "tacit.mesh/skips"

// maxSkips bounds one list: each range becomes part of a rule that every new
// connection of the pod passes.
const maxSkips = 256

// skipAnnotation is one name under which users write a skip list. Sidecar
// meshes differ in whether they read theirs on namespaces too: Linkerd does,
// Istio does not.
type skipAnnotation struct {
	name        string
	onNamespace bool
}

// ReadSkips reads the skip lists of a pod from its annotations and those of
// its namespace. For each of the three lists, what the pod says under any
// name wins over the namespace; names on the same object add up. A list that
// does not parse, or that the settings refuse, is an error that names the
// annotation; a list that does not parse skips nothing.
func ReadSkips(pod, namespace map[string]string, s SkipSettings) (Skips, []error) {
	skips, _, errs := ExplainSkips(pod, namespace, s)
	return skips, errs
}

// ExplainSkips is ReadSkips, and says by which annotations.
func ExplainSkips(pod, namespace map[string]string, s SkipSettings) (skips Skips, by SkippedBy, errs []error) {
	r := skipReader{pod: pod, namespace: namespace, listed: s.Listed}
	r.mode = r.narrowed(s.Mode)
	skips = Skips{
		Inbound: r.ports(&by.Inbound, []skipAnnotation{
			{"tacit.mesh/skip-inbound-ports", true},
			{"config.linkerd.io/skip-inbound-ports", true},
			{"linkerd.io/skip-inbound-ports", true},
			{"traffic.sidecar.istio.io/excludeInboundPorts", false},
		}),
		Outbound: r.ports(&by.Outbound, []skipAnnotation{
			{"tacit.mesh/skip-outbound-ports", true},
			{"config.linkerd.io/skip-outbound-ports", true},
			{"linkerd.io/skip-outbound-ports", true},
			{"traffic.sidecar.istio.io/excludeOutboundPorts", false},
		}),
		OutboundCIDRs: r.cidrs(&by.OutboundCIDRs, []skipAnnotation{
			{"tacit.mesh/skip-outbound-cidrs", true},
			{"traffic.sidecar.istio.io/excludeOutboundIPRanges", false},
		}),
	}
	return skips, by, r.errs
}

type skipReader struct {
	pod, namespace map[string]string
	mode           SkipMode
	listed         PortSet
	errs           []error
}

func (r *skipReader) failf(format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(format, args...))
}

// narrowed is the mesh's mode or the namespace's, whichever allows less.
func (r *skipReader) narrowed(mesh SkipMode) SkipMode {
	v, ok := r.namespace[skipsAnnotation]
	if !ok {
		return mesh
	}
	mode, err := ParseSkipMode(v)
	if err != nil {
		r.failf("namespace annotation %s: %w", skipsAnnotation, err)
	}
	if mode.width() > mesh.width() {
		r.failf("namespace annotation %s: %q is wider than the mesh allows", skipsAnnotation, v)
		return mesh
	}
	return mode
}

// written is one annotation as found.
type written struct{ name, value string }

func (r *skipReader) find(names []skipAnnotation) []written {
	var pod, namespace []written
	for _, n := range names {
		if v, ok := r.pod[n.name]; ok {
			pod = append(pod, written{"pod annotation " + n.name, v})
		}
		if v, ok := r.namespace[n.name]; ok && n.onNamespace {
			namespace = append(namespace, written{"namespace annotation " + n.name, v})
		}
	}
	if len(pod) > 0 {
		return pod
	}
	return namespace
}

// and adds a name to a list of them.
func and(names *string, name string) {
	if *names != "" {
		name = *names + " and " + name
	}
	*names = name
}

func (r *skipReader) ports(by *string, names []skipAnnotation) PortSet {
	var set PortSet
	for _, a := range r.find(names) {
		ports, err := ParsePorts(a.value)
		if err == nil {
			err = tooMany(len(ports))
		}
		if err != nil {
			r.failf("%s: %w", a.name, err)
			continue
		}
		if ports = r.permitted(a.name, ports); len(ports) > 0 {
			set = append(set, ports...)
			and(by, a.name)
		}
	}
	return merged(set)
}

func (r *skipReader) permitted(name string, ports PortSet) PortSet {
	switch {
	case len(ports) == 0 || r.mode == SkipsAny:
		return ports
	case r.mode != SkipsListed:
		r.failf("%s: skips are off here", name)
		return nil
	}
	return slices.DeleteFunc(ports, func(p PortRange) bool {
		if r.listed.covers(p) {
			return false
		}
		r.failf("%s: %s is not among the ports that may be skipped (%s)", name, PortSet{p}, r.listed)
		return true
	})
}

func (r *skipReader) cidrs(by *string, names []skipAnnotation) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range r.find(names) {
		cidrs, err := ParseCIDRs(a.value)
		if err == nil {
			err = tooMany(len(cidrs))
		}
		switch {
		case err != nil:
			r.failf("%s: %w", a.name, err)
		case len(cidrs) > 0 && r.mode != SkipsAny:
			r.failf("%s: destinations may not be skipped here", a.name)
		case len(cidrs) > 0:
			out = append(out, cidrs...)
			and(by, a.name)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

func tooMany(n int) error {
	if n > maxSkips {
		return fmt.Errorf("%d items, at most %d are possible", n, maxSkips)
	}
	return nil
}

// covers reports whether every port of r is in the set, by one range or by
// several together.
func (s PortSet) covers(r PortRange) bool {
	next := int(r.First)
	for grown := true; grown && next <= int(r.Last); {
		grown = false
		for _, x := range s {
			if int(x.First) <= next && next <= int(x.Last) {
				next, grown = int(x.Last)+1, true
			}
		}
	}
	return next > int(r.Last)
}

// merged is the set sorted, with overlapping and adjacent ranges joined.
func merged(set PortSet) PortSet {
	slices.SortFunc(set, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	var out PortSet
	for _, r := range set {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}
