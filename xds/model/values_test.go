package model

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseIdentity(t *testing.T) {
	good := map[string]Identity{
		"spiffe://cluster.local/ns/a/sa/b":       {"cluster.local", "a", "b"},
		"spiffe://t-D_1.x/ns/a-1/sa/B.c_2":       {"t-D_1.x", "a-1", "B.c_2"},
		"spiffe://ns/ns/ns/sa/sa":                {"ns", "ns", "sa"},
		"spiffe://td/ns/" + long + "/sa/" + long: {"td", long, long},
	}
	for s, want := range good {
		id, err := ParseIdentity(s)
		if err != nil || id != want || id.String() != s || "spiffe://"+id.Principal() != s || id.IsZero() {
			t.Errorf("%s: %+v, %v", s, id, err)
		}
	}
	for _, s := range []string{
		"", "spiffe://", "spiffe:///ns/a/sa/b", "spiffe://td/ns//sa/b", "spiffe://td/ns/a/sa/", "spiffe://td/ns/a/sa/b/",
		"spiffe://td/ns/a/sa/b/c", "spiffe://td/sa/b/ns/a", "SPIFFE://td/ns/a/sa/b", "http://td/ns/a/sa/b", "td/ns/a/sa/b",
		"spiffe://td:8/ns/a/sa/b", "spiffe://u@td/ns/a/sa/b", "spiffe://td/ns/a/sa/b?x", "spiffe://td/ns/a/sa/b#x",
		"spiffe://td/ns/a/sa/%62", "spiffe://td/ns/../sa/b", "spiffe://./ns/a/sa/b", " spiffe://td/ns/a/sa/b",
	} {
		if id, err := ParseIdentity(s); err == nil || !id.IsZero() {
			t.Errorf("%q parses as %+v", s, id)
		}
	}
	if (Identity{}).String() != "" || (Identity{}).Principal() != "" {
		t.Error("no identity has a name")
	}
}

const long = "abcdefghijklmnopqrstuvwxyz-abcdefghijklmnopqrstuvwxyz-0123456789"

// Every byte at every place: it is either one that SPIFFE allows in a name, or
// no identity results.
func TestParseIdentityOverAllBytes(t *testing.T) {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	const form = "spiffe://td/ns/na/sa/ac"
	for i := range len(form) {
		for b := range 256 {
			s := []byte(form)
			s[i] = byte(b)
			part := slices.Contains([]int{9, 10, 15, 16, 21, 22}, i) // letters of names
			want := s[i] == form[i] || part && strings.IndexByte(allowed, byte(b)) >= 0
			id, err := ParseIdentity(string(s))
			if (err == nil) != want {
				t.Errorf("byte %#x at %d: %+v, %v", b, i, id, err)
			}
			if err == nil && id.String() != string(s) {
				t.Errorf("byte %#x at %d: reads as %s", b, i, id)
			}
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"", " ", "80", "80,443", "1-65535", "0", "65536", "9-1", "80,,81", "-", "1-2-3", "+1", "٣", " 80 , 90-91 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		set, err := ParsePorts(s)
		if err != nil {
			if set != nil {
				t.Errorf("%q: %v and an error", s, set)
			}
			return
		}
		for _, r := range set {
			if r.First == 0 || r.First > r.Last {
				t.Errorf("%q: range %v", s, r)
			}
			if !set.Contains(r.First) || !set.Contains(r.Last) {
				t.Errorf("%q does not contain its own %v", s, r)
			}
		}
		again, err := ParsePorts(set.String())
		if err != nil || !slices.Equal(again, set) {
			t.Errorf("%q: %v reads as %v, %v", s, set, again, err)
		}
	})
}

func TestParsePortsByExamples(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "  ": "", "5432": "5432", "5432, 6379 ,9000-9100": "5432,6379,9000-9100", "7-7": "7", "65535": "65535",
	} {
		if set, err := ParsePorts(s); err != nil || set.String() != want {
			t.Errorf("%q: %v, %v", s, set, err)
		}
	}
	for _, s := range []string{"0", "65536", "65616", "9-1", "80,", ",80", "-80", "80-", "1-2-3", "+80", "0x50", "80;81", "http"} {
		if set, err := ParsePorts(s); err == nil || !strings.Contains(err.Error(), s) {
			t.Errorf("%q: %v, %v", s, set, err)
		}
	}
}

func FuzzParseCIDRs(f *testing.F) {
	for _, s := range []string{"", "10.0.0.1", "10.0.0.1/8", "fd00::/8,::1", "::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "fe80::1%eth0", "10.0.0.0/33", "10.0.0.0/08", "a,b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseCIDRs(s)
		if err != nil {
			if list != nil {
				t.Errorf("%q: %v and an error", s, list)
			}
			return
		}
		for _, p := range list {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" || !p.Contains(p.Addr()) {
				t.Errorf("%q: %v", s, p)
			}
			if again, err := ParseCIDR(p.String()); err != nil || again != p {
				t.Errorf("%q: %v reads as %v, %v", s, p, again, err)
			}
		}
	})
}

func TestParseCIDRByExamples(t *testing.T) {
	for s, want := range map[string]string{
		"10.1.2.3": "10.1.2.3/32", "10.1.2.3/8": "10.0.0.0/8", "0.0.0.0/0": "0.0.0.0/0",
		"fd00::1": "fd00::1/128", "fd00::1/8": "fd00::/8", "::ffff:10.0.0.1": "10.0.0.1/32",
	} {
		if p, err := ParseCIDR(s); err != nil || p.String() != want {
			t.Errorf("%q: %v, %v", s, p, err)
		}
	}
	for _, s := range []string{"", "10.0.0", "10.0.0.0/33", "10.0.0.0/-1", "fd00::/129", "::ffff:10.0.0.0/104", "fe80::1%eth0", "fe80::%eth0/64", "010.0.0.1", "host"} {
		if p, err := ParseCIDR(s); err == nil {
			t.Errorf("%q reads as %v", s, p)
		}
	}
}

func TestStringMatch(t *testing.T) {
	tests := []struct {
		pattern   string
		fits, not []string
	}{
		{"a", []string{"a"}, []string{"", "ab", "ba", "A"}},
		{"a*", []string{"a", "ab"}, []string{"", "ba"}},
		{"*a", []string{"a", "ba"}, []string{"", "ab"}},
		{"*", []string{"a", "*"}, []string{""}},
		{"", []string{""}, []string{"a"}},
		{"a*b", []string{"a*b"}, []string{"axb"}},
	}
	for _, tt := range tests {
		m := ParseStringMatch(tt.pattern)
		if m.String() != tt.pattern {
			t.Errorf("%q prints as %q", tt.pattern, m)
		}
		for _, s := range tt.fits {
			if !m.Matches(s) {
				t.Errorf("%q does not match %q", tt.pattern, s)
			}
		}
		for _, s := range tt.not {
			if m.Matches(s) {
				t.Errorf("%q matches %q", tt.pattern, s)
			}
		}
	}
	if (StringMatch{Kind: 9, Value: "a"}).Matches("a") {
		t.Error("a kind of a later version matches")
	}
}

// Nothing changes before the next edge, and at it something does.
func TestTimeWindowEdges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		second := rapid.Map(rapid.IntRange(0, 24*3600-1), func(s int) time.Duration { return time.Duration(s) * time.Second })
		w := TimeWindow{second.Draw(t, "first"), second.Draw(t, "last")}
		zone := time.FixedZone("", rapid.IntRange(-12, 14).Draw(t, "zone")*3600)
		now := time.Date(2026, 2, 28, 0, 0, 0, 0, time.UTC).Add(second.Draw(t, "now")).In(zone)
		if rapid.Bool().Draw(t, "within a second") {
			now = now.Add(time.Nanosecond)
		}
		next := w.NextEdge(now)
		if !next.After(now) || next.Sub(now) > 24*time.Hour {
			t.Fatalf("%v: next edge after %v is %v", w, now, next)
		}
		for _, at := range []time.Time{now.Add(next.Sub(now) / 2), next.Add(-time.Nanosecond)} {
			if w.Contains(at) != w.Contains(now) {
				t.Fatalf("%v changes at %v, before its next edge %v after %v", w, at, next, now)
			}
		}
		if changes := w.Contains(next) != w.Contains(now); changes != (w.First != w.Last) {
			t.Fatalf("%v at its next edge %v after %v: changes %v", w, next, now, changes)
		}
	})
}

func TestWorkloadHasAddress(t *testing.T) {
	w := Workload{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
	if !w.HasAddress(netip.MustParseAddr("fd00::1")) || w.HasAddress(netip.MustParseAddr("10.0.0.2")) {
		t.Error("HasAddress")
	}
}
