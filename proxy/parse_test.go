package proxy

import (
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/proxy/tracing"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	arrived4 = netip.MustParseAddr("198.18.1.1")
	arrived6 = netip.MustParseAddr("fd00:7ac1:1::1")
)

func TestTarget(t *testing.T) {
	for _, tt := range []struct {
		name, authority string
		arrived         netip.Addr
		want            string // "": refused
	}{
		{"IPv4", "198.18.1.1:80", arrived4, "198.18.1.1:80"},
		{"IPv6", "[fd00:7ac1:1::1]:80", arrived6, "[fd00:7ac1:1::1]:80"},
		{"IPv4-mapped is the same pod", "[::ffff:198.18.1.1]:80", arrived4, "198.18.1.1:80"},
		{"the highest port", "198.18.1.1:65535", arrived4, "198.18.1.1:65535"},
		{"another pod", "198.18.1.2:80", arrived4, ""},
		{"loopback", "127.0.0.1:80", arrived4, ""},
		{"IPv6 loopback", "[::1]:80", arrived6, ""},
		{"link-local", "169.254.169.254:80", arrived4, ""},
		{"multicast", "224.0.0.1:80", arrived4, ""},
		{"unspecified", "0.0.0.0:80", arrived4, ""},
		{"a zone", "[fd00:7ac1:1::1%lo]:80", arrived6, ""},
		{"a name", "shop.shop.svc.cluster.local:80", arrived4, ""},
		{"no port", "198.18.1.1", arrived4, ""},
		{"an empty port", "198.18.1.1:", arrived4, ""},
		{"port 0", "198.18.1.1:0", arrived4, ""},
		{"a port too high", "198.18.1.1:65536", arrived4, ""},
		{"a signed port", "198.18.1.1:+80", arrived4, ""},
		{"user info", "root@198.18.1.1:80", arrived4, ""},
		{"outbound capture", "198.18.1.1:15001", arrived4, ""},
		{"plaintext capture", "198.18.1.1:15006", arrived4, ""},
		{"HBONE", "198.18.1.1:15008", arrived4, ""},
		{"nothing", "", arrived4, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			to, err := aimAt(model.NewSnapshot(), nil, tt.authority, tt.arrived)
			got := to.dst
			switch {
			case tt.want == "" && err == nil:
				t.Errorf("%q leads to %v, want it refused", tt.authority, got)
			case tt.want != "" && (err != nil || got.String() != tt.want):
				t.Errorf("%q leads to %v (%v), want %s", tt.authority, got, err, tt.want)
			}
		})
	}
}

// Whatever a peer asks for, it gets the pod that it has reached or nothing.
func FuzzTarget(f *testing.F) {
	for _, seed := range []string{"198.18.1.1:80", "[fd00:7ac1:1::1]:80", "[::ffff:198.18.1.1]:80", "198.18.1.1:15008", "x:1", "[::1%0]:1", "[::1%" + strings.Repeat("x", 1000) + "]:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, authority string) {
		for _, arrived := range []netip.Addr{arrived4, arrived6} {
			to, err := aimAt(model.NewSnapshot(), nil, authority, arrived)
			got := to.dst
			if err == nil && (got.Addr() != arrived || got.Port() == 0 || route.OwnPort(got.Port())) {
				t.Errorf("%q leads to %v", authority, got)
			}
			if err != nil && len(err.Error()) > 400 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		}
	})
}

func TestTraceID(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	traceID := func(header string) string {
		c := &Connection{proxy: &Proxy{}}
		c.traced(func(name string) string {
			if name == tracing.ParentHeader {
				return header
			}
			return ""
		})
		return c.record.ID
	}
	if got := traceID(traceparent(id)); got != id {
		t.Errorf("the id %s arrives as %q", id, got)
	}
	for _, bad := range []string{
		"", "-", "00--00f067aa0ba902b7-00", "00-" + strings.ToUpper(id) + "-00f067aa0ba902b7-00", "00-" + id,
		"00-" + id + "0-00f067aa0ba902b7-00", "00-" + id[:31] + "\n-00f067aa0ba902b7-00", strings.Repeat("a-", 5000),
	} {
		if got := traceID(bad); len(got) != 32 || got == id || strings.Trim(got, "0123456789abcdef") != "" {
			t.Errorf("%.60q gives the id %q, want a new one", bad, got)
		}
	}
}

func TestBaggageLeavesOutWhatIsEmpty(t *testing.T) {
	got := baggage(&model.Workload{Namespace: "shop", WorkloadType: model.TypeJob, WorkloadName: "report", Locality: model.Locality{Region: "north"}})
	const want = "k8s.namespace.name=shop,k8s.job.name=report,cloud.region=north"
	if got != want {
		t.Errorf("baggage is %q, want %q", got, want)
	}
}

func TestAHandoverIsClaimedOnceAndByItsTokenAlone(t *testing.T) {
	var h handovers
	at := netip.AddrPortFrom(arrived4, 80)
	offer, other := h.offer("uid", at), h.offer("uid", at)
	token := offer.token
	if h.claim("", "uid", at) != nil || h.claim(token+"x", "uid", at) != nil {
		t.Error("an offer was claimed without its token")
	}
	if h.claim(token, "other", at) != nil || h.claim(token, "uid", netip.AddrPortFrom(arrived4, 81)) != nil {
		t.Error("an offer was claimed for another application")
	}
	if h.claim(token, "uid", at) != offer || h.claim(token, "uid", at) != nil {
		t.Error("want the offer claimed once")
	}
	h.withdraw(other)
	if h.claim(other.token, "uid", at) != nil || len(h.offered) != 0 {
		t.Errorf("a withdrawn offer is left: %v", h.offered)
	}
}
