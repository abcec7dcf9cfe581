package pods

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWhoseQueriesAreCaptured(t *testing.T) {
	servers := []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	for name, tt := range map[string]struct {
		settings    DNSSettings
		annotations map[string]string
		want        bool
		fault       string
	}{
		"nobody's":               {settings: DNSSettings{Servers: servers}},
		"everybody's":            {settings: DNSSettings{All: true, Servers: servers}, want: true},
		"one's that asks":        {settings: DNSSettings{Servers: servers}, annotations: map[string]string{"tacit.mesh/dns-capture": "true"}, want: true},
		"as Istio has it":        {settings: DNSSettings{Servers: servers}, annotations: map[string]string{"ambient.istio.io/dns-capture": "true"}, want: true},
		"one's that does not":    {settings: DNSSettings{All: true, Servers: servers}, annotations: map[string]string{"ambient.istio.io/dns-capture": "false"}},
		"ours comes first":       {settings: DNSSettings{Servers: servers}, annotations: map[string]string{"tacit.mesh/dns-capture": "false", "ambient.istio.io/dns-capture": "true"}},
		"without servers":        {annotations: map[string]string{"tacit.mesh/dns-capture": "true"}, fault: "--dns-server"},
		"neither true nor false": {settings: DNSSettings{All: true, Servers: servers}, annotations: map[string]string{"tacit.mesh/dns-capture": "yes"}, fault: `"yes"`},
	} {
		t.Run(name, func(t *testing.T) {
			p := Reader{DNS: tt.settings}.Read(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: tt.annotations}}, &corev1.Namespace{})
			var want []netip.Addr
			if tt.want {
				want = servers
			}
			if diff := cmp.Diff(want, p.DNSServers, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || p.DNS != tt.want {
				t.Errorf("captured: %v, servers (-want +got):\n%s", p.DNS, diff)
			}
			if faults := strings.Join(p.Faults, "\n"); (faults == "") != (tt.fault == "") || !strings.Contains(faults, tt.fault) {
				t.Errorf("faults %q, want %q", faults, tt.fault)
			}
		})
	}
}
