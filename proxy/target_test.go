package proxy

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/xds/model"
)

// sandwich is a mesh of a pod, a service that it serves, and one behind it as a
// waypoint.
func sandwich(edits ...func(*model.Workload)) (*model.Snapshot, *model.Workload) {
	at := func(a string) []model.NetworkAddress {
		return []model.NetworkAddress{{Network: "n1", Prefix: netip.PrefixFrom(netip.MustParseAddr(a), netip.MustParseAddr(a).BitLen())}}
	}
	self := model.Gateway{Service: "infra/gate.infra.svc.cluster.local", Port: 15008}
	w := &model.Workload{
		UID: "gate", Name: "gate", Namespace: "infra", Network: "n1", Addresses: []netip.Addr{arrived4},
		Services: map[string][]model.Port{
			"infra/gate.infra.svc.cluster.local": {{Service: 80, Target: 8080}, {Service: 81}},
			"web/shared.example":                 {{Service: 80, Target: 8081}},
			"infra/shared.example":               {{Service: 80, Target: 8082}},
		},
	}
	for _, edit := range edits {
		edit(w)
	}
	gate := &model.Service{
		Name: "gate", Namespace: "infra", Hostname: "gate.infra.svc.cluster.local", Addresses: at("198.19.0.9"),
		Ports: []model.Port{{Service: 80}, {Service: 81}, {Service: 82, Target: 8282}, {Service: 83, Target: protocol.HBONEPort}},
	}
	shop := &model.Service{
		Name: "shop", Namespace: "shop", Hostname: "shop.shop.svc.cluster.local", Addresses: append(at("fd00:7ac1:9::1"), at("198.19.0.1")...),
		Waypoints: []model.WeightedGateway{{Gateway: self, Weight: 1}},
	}
	s := model.NewSnapshot().Apply(model.Update{
		Services: []*model.Service{
			gate, shop,
			{Name: "other", Namespace: "shop", Hostname: "other.shop.svc.cluster.local", Addresses: append(at("198.19.0.2"), at("198.19.0.3")...)},
			{Name: "behind", Namespace: "web", Hostname: "behind.web.svc.cluster.local", Addresses: at("198.19.0.2"), Waypoints: shop.Waypoints},
			{Name: "bare", Namespace: "shop", Hostname: "bare.shop.svc.cluster.local", Waypoints: shop.Waypoints},
			{Name: "shared", Namespace: "web", Hostname: "shared.example", Canonical: true},
			{Name: "shared", Namespace: "infra", Hostname: "shared.example"},
		},
		Workloads: []*model.Workload{
			w,
			{UID: "b", Namespace: "shop", Network: "n1", Addresses: []netip.Addr{netip.MustParseAddr("198.18.2.1")}, Waypoint: &self},
			{UID: "c", Namespace: "shop", Network: "n1", Addresses: []netip.Addr{netip.MustParseAddr("198.18.2.2")}},
		},
	})
	return s, w
}

func tunnel(t model.ApplicationTunnel) func(*model.Workload) {
	return func(w *model.Workload) { w.Tunnel = &t }
}

func TestWhatAPodIsGiven(t *testing.T) {
	proxied := tunnel(model.ApplicationTunnel{Port: 15088, PROXY: true})
	for name, tt := range map[string]struct {
		edits     []func(*model.Workload)
		authority string
		dst       string // "": refused
		named     string
		service   string
		unserved  bool // refused as something that another may serve
	}{
		"its own address":                      {authority: "198.18.1.1:80", dst: "198.18.1.1:80"},
		"its service's name":                   {authority: "gate.infra.svc.cluster.local:80", dst: "198.18.1.1:8080"},
		"a port of the service":                {authority: "gate.infra.svc.cluster.local:82", dst: "198.18.1.1:8282"},
		"a named port that it lacks":           {authority: "gate.infra.svc.cluster.local:81", unserved: true},
		"a port that the service lacks":        {authority: "gate.infra.svc.cluster.local:99", unserved: true},
		"a service port that is the proxy's":   {authority: "gate.infra.svc.cluster.local:83"},
		"a name in two namespaces":             {authority: "shared.example:80", dst: "198.18.1.1:8082"},
		"a service of others":                  {authority: "other.shop.svc.cluster.local:80", unserved: true},
		"a name of nobody":                     {authority: "nobody.example:80", unserved: true},
		"a name without a port":                {authority: "gate.infra.svc.cluster.local"},
		"a name with port 0":                   {authority: "gate.infra.svc.cluster.local:0"},
		"a name with a port too high":          {authority: "gate.infra.svc.cluster.local:65536"},
		"a name with a signed port":            {authority: "gate.infra.svc.cluster.local:+80"},
		"no name":                              {authority: ":80"},
		"an IPv6 address without brackets":     {authority: "fd00:7ac1:1::1:80"},
		"behind it, by a virtual address":      {authority: "198.19.0.1:80", dst: "198.18.1.1:80"},
		"behind it, by a workload's":           {authority: "198.18.2.1:80", dst: "198.18.1.1:80"},
		"behind it, by name":                   {authority: "shop.shop.svc.cluster.local:80", dst: "198.18.1.1:80"},
		"not behind it, a virtual address":     {authority: "198.19.0.3:80"},
		"not behind it, a workload":            {authority: "198.18.2.2:80"},
		"of nobody":                            {authority: "203.0.113.1:80"},
		"tunnel, of anybody":                   {edits: []func(*model.Workload){proxied}, authority: "203.0.113.1:80", dst: "198.18.1.1:15088", named: "203.0.113.1:80"},
		"tunnel, its own address":              {edits: []func(*model.Workload){proxied}, authority: "198.18.1.1:80", dst: "198.18.1.1:15088", named: "198.18.1.1:80"},
		"tunnel, by name":                      {edits: []func(*model.Workload){proxied}, authority: "shop.shop.svc.cluster.local:80", dst: "198.18.1.1:15088", named: "198.19.0.1:80", service: "shop.shop.svc.cluster.local"},
		"tunnel, by a virtual address":         {edits: []func(*model.Workload){proxied}, authority: "198.19.0.1:80", dst: "198.18.1.1:15088", named: "198.19.0.1:80", service: "shop.shop.svc.cluster.local"},
		"tunnel, one that services share":      {edits: []func(*model.Workload){proxied}, authority: "198.19.0.2:80", dst: "198.18.1.1:15088", named: "198.19.0.2:80", service: "behind.web.svc.cluster.local"},
		"tunnel, a service of its own":         {edits: []func(*model.Workload){proxied}, authority: "198.19.0.9:80", dst: "198.18.1.1:15088", named: "198.19.0.9:80", service: "gate.infra.svc.cluster.local"},
		"tunnel, a workload's address":         {edits: []func(*model.Workload){proxied}, authority: "198.18.2.1:80", dst: "198.18.1.1:15088", named: "198.18.2.1:80"},
		"tunnel, a name without an address":    {edits: []func(*model.Workload){proxied}, authority: "bare.shop.svc.cluster.local:80", unserved: true},
		"tunnel, a name of nobody":             {edits: []func(*model.Workload){proxied}, authority: "nobody.example:80", unserved: true},
		"tunnel, loopback":                     {edits: []func(*model.Workload){proxied}, authority: "127.0.0.1:80"},
		"tunnel, link-local":                   {edits: []func(*model.Workload){proxied}, authority: "169.254.169.254:80"},
		"tunnel, multicast":                    {edits: []func(*model.Workload){proxied}, authority: "224.0.0.1:80"},
		"tunnel, a zone":                       {edits: []func(*model.Workload){proxied}, authority: "[fd00::1%lo]:80"},
		"tunnel, port 0":                       {edits: []func(*model.Workload){proxied}, authority: "203.0.113.1:0"},
		"tunnel, a port of the proxy":          {edits: []func(*model.Workload){proxied}, authority: "203.0.113.1:15001"},
		"tunnel at a port of the proxy":        {edits: []func(*model.Workload){tunnel(model.ApplicationTunnel{Port: protocol.HBONEPort, PROXY: true})}, authority: "198.18.1.1:80"},
		"tunnel without a port":                {edits: []func(*model.Workload){tunnel(model.ApplicationTunnel{PROXY: true})}, authority: "198.19.0.1:80", dst: "198.18.1.1:80", named: "198.19.0.1:80", service: "shop.shop.svc.cluster.local"},
		"another port alone":                   {edits: []func(*model.Workload){tunnel(model.ApplicationTunnel{Port: 9999})}, authority: "198.18.1.1:80", dst: "198.18.1.1:9999"},
		"another port alone, for a stranger's": {edits: []func(*model.Workload){tunnel(model.ApplicationTunnel{Port: 9999})}, authority: "203.0.113.1:80"},
	} {
		t.Run(name, func(t *testing.T) {
			s, w := sandwich(tt.edits...)
			got, err := aimAt(s, w, tt.authority, arrived4)
			if tt.dst == "" {
				if err == nil || errors.Is(err, errNotServed) != tt.unserved {
					t.Errorf("leads to %+v, %v", got, err)
				}
				return
			}
			named := ""
			if got.named.IsValid() {
				named = got.named.String()
			}
			if err != nil || got.dst.String() != tt.dst || named != tt.named || got.service != tt.service {
				t.Errorf("leads to %v as %q of %q (%v), want %s as %q of %q", got.dst, named, got.service, err, tt.dst, tt.named, tt.service)
			}
		})
	}
}

// Only what may be a name could be one's of which the control plane has not
// told yet.
func TestWhatIsNoHostname(t *testing.T) {
	for authority, name := range map[string]bool{
		"shop.mesh.svc.cluster.local:80": true, "localhost:80": true, "a_b.example:80": true,
		"user@shop:80": false, "0306.022.02.012:80": false, "a..b:80": false, ".a:80": false, "a b:80": false,
		strings.Repeat("a", 64) + ".b:80": false, strings.Repeat("a.", 127) + "b:80": false,
	} {
		s, w := sandwich()
		if _, err := aimAt(s, w, authority, arrived4); err == nil || errors.Is(err, errNotServed) != name {
			t.Errorf("%.70q: %v", authority, err)
		}
	}
}

// The bytes are those of the protocol's text and of Istio's extension.
func TestProxyHeader(t *testing.T) {
	signature := []byte{0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21}
	id := model.Identity{TrustDomain: "td", Namespace: "a", ServiceAccount: "b"}
	text := "spiffe://td/ns/a/sa/b"
	mapped := append(make([]byte, 10), 0xff, 0xff)
	for name, tt := range map[string]struct {
		src, dst string
		id       model.Identity
		service  string
		want     [][]byte
	}{
		"IPv4": {"198.18.1.1:40000", "198.19.0.1:80", model.Identity{}, "", [][]byte{{0x11, 0, 12, 198, 18, 1, 1, 198, 19, 0, 1, 0x9c, 0x40, 0, 80}}},
		"with an identity": {"198.18.1.1:40000", "198.19.0.1:80", id, "", [][]byte{
			{0x11, 0, byte(12 + 3 + len(text)), 198, 18, 1, 1, 198, 19, 0, 1, 0x9c, 0x40, 0, 80, 0xd0, 0, byte(len(text))}, []byte(text),
		}},
		"with an identity and a service": {"198.18.1.1:40000", "198.19.0.1:80", id, "web.example", [][]byte{
			{0x11, 0, byte(12 + 3 + len(text) + 3 + 11), 198, 18, 1, 1, 198, 19, 0, 1, 0x9c, 0x40, 0, 80, 0xd0, 0, byte(len(text))}, []byte(text),
			{0xd1, 0, 11}, []byte("web.example"),
		}},
		"IPv6": {"[fd00::1]:40000", "[fd00::2]:80", model.Identity{}, "", [][]byte{
			{0x21, 0, 36, 0xfd}, make([]byte, 14), {1, 0xfd}, make([]byte, 14), {2, 0x9c, 0x40, 0, 80},
		}},
		"both families": {"198.18.1.1:40000", "[fd00::2]:80", model.Identity{}, "", [][]byte{
			{0x21, 0, 36}, mapped, {198, 18, 1, 1, 0xfd}, make([]byte, 14), {2, 0x9c, 0x40, 0, 80},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			want := append(bytes.Clone(signature), bytes.Join(tt.want, nil)...)
			if got := proxyHeader(netip.MustParseAddrPort(tt.src), netip.MustParseAddrPort(tt.dst), tt.id, tt.service); !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
}
