package build

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Who asks for an identity from the address of an enrolled pod that has another
// one is not the node's proxy, by whatever name and family it asks.
func TestPoses(t *testing.T) {
	m := New(Settings{TrustDomain: "new.example", TrustDomainAliases: []string{"old.example"}})
	const enrolled = `{metadata: {name: web, namespace: shop, uid: u1}, spec: {serviceAccountName: web, nodeName: node-1}, status: {podIPs: [{ip: 198.18.0.1}, {ip: "fd00:7ac1::1"}]}}`
	const other = `{metadata: {name: proxy, namespace: system, uid: u2}, spec: {serviceAccountName: proxy, nodeName: node-1}, status: {podIPs: [{ip: 198.18.0.2}]}}`
	objects := Objects{
		Namespaces: []*corev1.Namespace{object[corev1.Namespace](t, `{metadata: {name: shop, labels: {tacit.mesh/dataplane: enabled}}}`)},
		Pods:       []*corev1.Pod{object[corev1.Pod](t, enrolled), object[corev1.Pod](t, other)},
	}
	m.Apply(objects.Since(nil))
	for _, test := range []struct {
		from, domain, account string
		want                  bool
	}{
		{"198.18.0.1", "new.example", "db", true},
		{"::ffff:198.18.0.1", "new.example", "db", true},
		{"fd00:7ac1::1", "old.example", "db", true},
		{"198.18.0.1", "new.example", "web", false},
		{"198.18.0.1", "old.example", "web", false},
		{"198.18.0.2", "new.example", "db", false},
		{"198.18.0.3", "new.example", "db", false},
	} {
		id := model.Identity{TrustDomain: test.domain, Namespace: "shop", ServiceAccount: test.account}
		if got := m.Poses(netip.MustParseAddr(test.from), id); got != test.want {
			t.Errorf("%s from %s poses: %v, want %v", id, test.from, got, test.want)
		}
	}
	if m.Poses(netip.Addr{}, model.Identity{}) {
		t.Error("an address that is not known poses")
	}
}
