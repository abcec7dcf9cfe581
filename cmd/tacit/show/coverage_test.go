package show

import (
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/traffic"
	"github.com/tacit-mesh/tacit/sight/uses"
)

func TestCoverage(t *testing.T) {
	web, api := flows.Party{Namespace: "web", Name: "frontend"}, flows.Party{Namespace: "shop", Name: "api\x1b[2J"}
	c := &traffic.Coverage{
		Since: noon,
		All:   traffic.Shares{MTLS: 99999, Plain: 1, Denied: 3, Share: 99999. / 100000},
		Mesh:  traffic.Shares{MTLS: 1, Share: 1}, Workloads: 3, PolicyCoverage: 2. / 3,
		Reasons:    []traffic.Reason{{Security: "plain", Why: flows.WhyClientSkips, Connections: 1}},
		Namespaces: []traffic.Namespace{{Namespace: "shop", Shares: traffic.Shares{MTLS: 4, Share: 1}, Workloads: 3, WithoutPolicy: 1}},
		Pairs: []traffic.Pair{
			{Key: traffic.Key{Source: web, Destination: api, Security: "mtls"}, Counts: flows.Counts{Connections: 3, Live: 1, Requests: 7, Sent: 1 << 20}},
			{Key: traffic.Key{Source: flows.Other, Security: "plain", Why: flows.WhyServerOutside}, Counts: flows.Counts{Denied: 1}},
		},
		WithoutPolicy:  []flows.Party{web},
		NotCaptured:    []traffic.NotCaptured{{Party: api, Pods: 2, Why: traffic.WhyHost}},
		UnusedPolicies: []string{"shop/never"},
		Week:           &uses.Report{Since: noon.Add(-9 * 24 * time.Hour), Unused: []string{"shop/never"}},
	}
	golden(t, "coverage", func(p Printer) error { return p.Coverage(c, false) })
	golden(t, "coverage-pairs", func(p Printer) error { return p.Coverage(c, true) })
	golden(t, "coverage-none", func(p Printer) error { return p.Coverage(traffic.Sum(nil), true) })
}
