package model

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadSkips(t *testing.T) {
	type annotations = map[string]string
	anything := SkipSettings{Mode: SkipsAny}
	listed := SkipSettings{Mode: SkipsListed, Listed: PortSet{{5432, 5432}, {9000, 9050}, {9051, 9100}}}
	comparePrefixes := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

	for name, tt := range map[string]struct {
		pod, namespace annotations
		settings       SkipSettings
		want           Skips
		errs           []string // one substring for each error, in order
	}{
		"nothing": {settings: anything},
		"our own names, merged": {
			pod: annotations{
				"tacit.mesh/skip-inbound-ports":  "6379, 5432,5433",
				"tacit.mesh/skip-outbound-ports": "9000-9100,9050-9200",
				"tacit.mesh/skip-outbound-cidrs": "10.0.0.1/8,fd00::1,10.0.0.0/8",
			},
			settings: anything,
			want: Skips{
				Inbound:       PortSet{{5432, 5433}, {6379, 6379}},
				Outbound:      PortSet{{9000, 9200}},
				OutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::1/128")},
			},
		},
		"foreign names add up": {
			pod: annotations{
				"config.linkerd.io/skip-inbound-ports":             "1",
				"linkerd.io/skip-inbound-ports":                    "3",
				"traffic.sidecar.istio.io/excludeInboundPorts":     "5",
				"config.linkerd.io/skip-outbound-ports":            "7",
				"linkerd.io/skip-outbound-ports":                   "9",
				"traffic.sidecar.istio.io/excludeOutboundPorts":    "11",
				"traffic.sidecar.istio.io/excludeOutboundIPRanges": "192.0.2.0/24",
			},
			settings: anything,
			want: Skips{
				Inbound:       PortSet{{1, 1}, {3, 3}, {5, 5}},
				Outbound:      PortSet{{7, 7}, {9, 9}, {11, 11}},
				OutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
			},
		},
		"the pod wins over the namespace, list by list": {
			pod:       annotations{"config.linkerd.io/skip-inbound-ports": "1"},
			namespace: annotations{"tacit.mesh/skip-inbound-ports": "2", "linkerd.io/skip-outbound-ports": "3"},
			settings:  anything,
			want:      Skips{Inbound: PortSet{{1, 1}}, Outbound: PortSet{{3, 3}}},
		},
		"an empty list of the pod wins too": {
			pod:       annotations{"tacit.mesh/skip-inbound-ports": ""},
			namespace: annotations{"tacit.mesh/skip-inbound-ports": "2"},
			settings:  anything,
		},
		"a bad list of the pod does not open the namespace's": {
			pod:       annotations{"tacit.mesh/skip-inbound-ports": "80,x"},
			namespace: annotations{"tacit.mesh/skip-inbound-ports": "2"},
			settings:  anything,
			errs:      []string{"pod annotation tacit.mesh/skip-inbound-ports: "},
		},
		"a bad list leaves the others": {
			pod:      annotations{"linkerd.io/skip-outbound-ports": "0", "tacit.mesh/skip-outbound-ports": "4", "tacit.mesh/skip-outbound-cidrs": "nowhere"},
			settings: anything,
			want:     Skips{Outbound: PortSet{{4, 4}}},
			errs:     []string{"linkerd.io/skip-outbound-ports", "tacit.mesh/skip-outbound-cidrs"},
		},
		"Istio's are not read on namespaces": {
			namespace: annotations{"traffic.sidecar.istio.io/excludeInboundPorts": "5"},
			settings:  anything,
		},
		"listed": {
			pod:      annotations{"tacit.mesh/skip-inbound-ports": "5432,5433,9040-9060,9100-9101", "tacit.mesh/skip-outbound-cidrs": "10.0.0.0/8"},
			settings: listed,
			want:     Skips{Inbound: PortSet{{5432, 5432}, {9040, 9060}}},
			errs:     []string{": 5433 is not", ": 9100-9101 is not", "tacit.mesh/skip-outbound-cidrs: destinations"},
		},
		"none": {
			pod:      annotations{"tacit.mesh/skip-inbound-ports": "5432"},
			settings: SkipSettings{Mode: SkipsNone, Listed: listed.Listed},
			errs:     []string{"skips are off"},
		},
		"no mode is none": {
			pod:  annotations{"tacit.mesh/skip-outbound-ports": "5432"},
			errs: []string{"skips are off"},
		},
		"a namespace narrows": {
			pod:       annotations{"tacit.mesh/skip-inbound-ports": "5432,80"},
			namespace: annotations{"tacit.mesh/skips": "listed"},
			settings:  SkipSettings{Mode: SkipsAny, Listed: listed.Listed},
			want:      Skips{Inbound: PortSet{{5432, 5432}}},
			errs:      []string{": 80 is not"},
		},
		"a namespace cannot widen": {
			pod:       annotations{"tacit.mesh/skip-inbound-ports": "80"},
			namespace: annotations{"tacit.mesh/skips": "any"},
			settings:  listed,
			errs:      []string{"wider", ": 80 is not"},
		},
		"a namespace's mode that is none": {
			pod:       annotations{"tacit.mesh/skip-inbound-ports": "80"},
			namespace: annotations{"tacit.mesh/skips": "all"},
			settings:  anything,
			errs:      []string{`"all"`, "skips are off"},
		},
		"a pod cannot set the mode": {
			pod:      annotations{"tacit.mesh/skips": "any", "tacit.mesh/skip-inbound-ports": "80"},
			settings: listed,
			errs:     []string{": 80 is not"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, errs := ReadSkips(tt.pod, tt.namespace, tt.settings)
			if diff := cmp.Diff(tt.want, got, comparePrefixes); diff != "" {
				t.Errorf("skips (-want +got):\n%s", diff)
			}
			if !slices.EqualFunc(errs, tt.errs, func(e error, s string) bool { return strings.Contains(e.Error(), s) }) {
				t.Errorf("errors %v, want %q", errors.Join(errs...), tt.errs)
			}
		})
	}
}

func TestExplainSkips(t *testing.T) {
	pod := map[string]string{
		"tacit.mesh/skip-inbound-ports": "5432", "config.linkerd.io/skip-inbound-ports": "6379", "linkerd.io/skip-inbound-ports": "none of these",
		"tacit.mesh/skip-outbound-cidrs": "",
	}
	namespace := map[string]string{"tacit.mesh/skip-inbound-ports": "80", "config.linkerd.io/skip-outbound-ports": "25", "tacit.mesh/skip-outbound-cidrs": "10.0.0.0/8"}
	_, by, _ := ExplainSkips(pod, namespace, SkipSettings{Mode: SkipsAny})
	want := SkippedBy{
		Inbound:  "pod annotation tacit.mesh/skip-inbound-ports and pod annotation config.linkerd.io/skip-inbound-ports",
		Outbound: "namespace annotation config.linkerd.io/skip-outbound-ports",
	}
	if by != want {
		t.Errorf("skipped by %+v, want %+v", by, want)
	}
	if _, by, errs := ExplainSkips(pod, namespace, SkipSettings{Mode: SkipsNone}); by != (SkippedBy{}) || len(errs) == 0 {
		t.Errorf("what is refused skips by %+v", by)
	}
}

func TestReadSkipsBoundsTheList(t *testing.T) {
	var list []string
	for p := range maxSkips + 1 {
		list = append(list, fmt.Sprint(2*p+1))
	}
	read := func(n int) (Skips, []error) {
		return ReadSkips(map[string]string{"tacit.mesh/skip-inbound-ports": strings.Join(list[:n], ",")}, nil, SkipSettings{Mode: SkipsAny})
	}
	if got, errs := read(maxSkips); len(got.Inbound) != maxSkips || errs != nil {
		t.Errorf("%d items: got %d, %v", maxSkips, len(got.Inbound), errs)
	}
	if got, errs := read(maxSkips + 1); got.Inbound != nil || len(errs) != 1 {
		t.Errorf("%d items: got %d, %v", maxSkips+1, len(got.Inbound), errs)
	}
}

func FuzzReadSkips(f *testing.F) {
	f.Add("5432,6379,9000-9100", "10.0.0.0/8,fd00::/8")
	f.Add("1-65535,65535-65535", "::ffff:10.0.0.1")
	f.Fuzz(func(t *testing.T, ports, cidrs string) {
		pod := map[string]string{"tacit.mesh/skip-inbound-ports": ports, "tacit.mesh/skip-outbound-cidrs": cidrs}
		got, errs := ReadSkips(pod, nil, SkipSettings{Mode: SkipsAny})
		for i, r := range got.Inbound {
			if r.First == 0 || r.First > r.Last || i > 0 && int(r.First) <= int(got.Inbound[i-1].Last)+1 {
				t.Fatalf("%q: %v is not sorted and merged", ports, got.Inbound)
			}
		}
		for _, c := range got.OutboundCIDRs {
			if !c.IsValid() || c != c.Masked() || c.Addr().Is4In6() {
				t.Fatalf("%q: %v is not a masked prefix", cidrs, c)
			}
		}
		if len(errs) > 2 {
			t.Fatalf("more errors than annotations: %v", errs)
		}
		again, errs := ReadSkips(map[string]string{"tacit.mesh/skip-inbound-ports": got.Inbound.String()}, nil, SkipSettings{Mode: SkipsAny})
		if len(errs) > 0 || !slices.Equal(again.Inbound, got.Inbound) {
			t.Fatalf("%q reads back as %v, %v", got.Inbound, again.Inbound, errs)
		}
	})
}
