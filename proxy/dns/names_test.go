package dns

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCandidates(t *testing.T) {
	zone := NewZone("Cluster.Local.")
	for name, want := range map[string][]candidate{
		"shop": {{"shop", ""}, {"shop.mine.svc.cluster.local", ""}},
		"shop.other": {
			{"shop.other", ""}, {"shop.other.svc.cluster.local", ""}, {"shop.other.mine.svc.cluster.local", ""},
		},
		"shop.other.svc": {
			{"shop.other.svc", ""}, {"shop.other.svc.cluster.local", ""}, {"shop.other.svc.svc.cluster.local", ""},
		},
		"pod-0.shop.other":               {{"pod-0.shop.other", ""}, {"pod-0.shop.other.svc.cluster.local", ""}},
		"pod-0.shop.other.svc":           {{"pod-0.shop.other.svc", ""}, {"pod-0.shop.other.svc.cluster.local", ""}},
		"a.shop.example.com":             {{"a.shop.example.com", ""}},
		"other.svc.cluster.local.shop.a": {{"other.svc.cluster.local.shop.a", ""}},
		"shop.mine.svc.cluster.local": {
			{"shop.mine.svc.cluster.local", ""},
			{"shop", "shop"}, {"shop.mine.svc.cluster.local", "shop"},
			{"shop.mine", "shop.mine"}, {"shop.mine.svc.cluster.local", "shop.mine"}, {"shop.mine.mine.svc.cluster.local", "shop.mine"},
			{"shop.mine.svc", "shop.mine.svc"}, {"shop.mine.svc.cluster.local", "shop.mine.svc"}, {"shop.mine.svc.svc.cluster.local", "shop.mine.svc"},
		},
		"www.example.com.cluster.local": {
			{"www.example.com.cluster.local", ""}, {"www.example.com", "www.example.com"}, {"www.example.com.svc.cluster.local", "www.example.com"},
		},
		"svc.cluster.local": {
			{"svc.cluster.local", ""}, {"svc.cluster.local.svc.cluster.local", ""}, {"svc", "svc"}, {"svc.mine.svc.cluster.local", "svc"},
		},
		"": {{"", ""}, {".mine.svc.cluster.local", ""}},
	} {
		if diff := cmp.Diff(want, slices.Collect(zone.candidates(name, "mine")), cmp.AllowUnexported(candidate{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", name, diff)
		}
	}
}

func TestPatterns(t *testing.T) {
	want := []string{"a.b.example.com", "*.b.example.com", "*.example.com", "*.com"}
	if diff := cmp.Diff(want, slices.Collect(patterns("a.b.example.com"))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a"}, slices.Collect(patterns("a"))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
