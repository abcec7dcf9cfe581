package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// window is one of request.time, from and to the given distances from now.
func window(from, to time.Duration) string {
	now := time.Now().UTC()
	return now.Add(from).Format(time.TimeOnly) + "-" + now.Add(to).Format(time.TimeOnly)
}

// Each attribute of a policy tells the callers apart that it is about. Those
// refused find the policy and the attribute in their denial.
func TestAttributes(t *testing.T) {
	m := e2e.Start(t)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	const everybody = "client twin near plain"
	for _, test := range []struct {
		name, spec string
		allowed    string // pods by name
		attribute  string // of the denials
	}{
		{"nothing allowed", "{action: ALLOW}", "", "no rule that could"},
		{"everything allowed", "{action: ALLOW, rules: [{}]}", everybody, ""},
		{"everything denied", "{action: DENY, rules: [{}]}", "", ""},
		{"of another pod", "{action: DENY, selector: {matchLabels: {app: pair}}, rules: [{}]}", everybody, ""},
		{"of this pod", "{action: DENY, selector: {matchLabels: {app: server}}, rules: [{}]}", "", ""},

		{"principals", allow("principals: [cluster.local/ns/mesh/sa/near]"), "near", "principals"},
		{"principals by prefix", allow(`principals: ["cluster.local/ns/mesh/*"]`), "client twin near", "principals"},
		{"principals by suffix", deny(`principals: ["*/sa/near"]`), "client twin plain", "principals"},
		{"any principal", allow(`principals: ["*"]`), "client twin near", "principals"},
		{"principals of another trust domain", allow("principals: [other.example/ns/mesh/sa/near]"), "", "principals"},
		{"notPrincipals", deny("notPrincipals: [cluster.local/ns/mesh/sa/client]"), "client twin", "notPrincipals"},
		{"namespaces", allow("namespaces: [mesh]"), "client twin near", "namespaces"},
		{"namespaces, of no identity", deny("namespaces: [outside]"), everybody, ""},
		{"notNamespaces", deny("notNamespaces: [mesh]"), "client twin near", "notNamespaces"},
		{"serviceAccounts", allow("serviceAccounts: [near, mesh/client]"), "client twin near", "serviceAccounts"},
		{"notServiceAccounts", deny("notServiceAccounts: [mesh/client]"), "client twin", "notServiceAccounts"},

		{"ipBlocks tell two pods of one account apart", allow("ipBlocks: [198.18.1.11/32]"), "twin", "ipBlocks"},
		{"notIpBlocks", deny("notIpBlocks: [198.18.1.8/29]"), "client twin", "notIpBlocks"},
		{"remoteIpBlocks", allow("remoteIpBlocks: [198.18.1.20, 198.18.1.30]"), "near plain", "pBlocks"},
		{"notRemoteIpBlocks", deny("notRemoteIpBlocks: [198.18.1.20]"), "near", "otIpBlocks"},

		{"ports", "{action: DENY, rules: [{to: [{operation: {ports: ['8080', '9090']}}]}]}", "", "ports"},
		{"ports of others", "{action: DENY, rules: [{to: [{operation: {ports: ['9090']}}]}]}", everybody, ""},
		{"notPorts", "{action: ALLOW, rules: [{to: [{operation: {notPorts: ['8080']}}]}]}", "", "notPorts"},
		{"both of from and to", "{action: ALLOW, rules: [{from: [{source: {serviceAccounts: [near]}}], to: [{operation: {ports: ['9090']}}]}]}", "", ""},

		{"when source.principal", when("source.principal", "values: [cluster.local/ns/mesh/sa/near]"), "near", "principals"},
		{"when source.namespace", when("source.namespace", "values: [mesh]"), "client twin near", "namespaces"},
		{"when source.ip", when("source.ip", "notValues: [198.18.1.0/28]"), "near plain", "otIpBlocks"},
		{"when destination.ip", when("destination.ip", "values: [198.18.2.10]"), everybody, ""},
		{"when destination.ip is another", when("destination.ip", "values: [198.18.2.11]"), "", "destination.ip"},
		{"when destination.port", when("destination.port", "values: ['8080']"), everybody, ""},
		{"when source.labels", when("source.labels[app]", "values: [client]"), "client twin", "source.labels"},
		{"when source.labels are not", when("source.labels[app]", "notValues: [client]"), "near", "source.labels"},
		{"when request.time is now", when("request.time", "values: ['"+window(-time.Hour, time.Hour)+"']"), everybody, ""},
		{"when request.time is not now", when("request.time", "values: ['"+window(time.Hour, 2*time.Hour)+"']"), "", "request.time"},
		{"when request.time is anything but now", when("request.time", "notValues: ['"+window(-time.Hour, time.Hour)+"']"), "", "request.time"},
	} {
		t.Run(test.name, func(t *testing.T) {
			apply(t, m, authorization("case", test.spec))
			began := time.Now()
			for pod := range callers {
				_, name, _ := strings.Cut(pod, "/")
				allowed := slices.Contains(strings.Fields(test.allowed), name)
				switch _, err := m.Call(pod, server); {
				case allowed && err != nil:
					t.Errorf("%s: %v", pod, err)
				case !allowed && !denied(err):
					t.Errorf("%s: %v, want a reset", pod, err)
				case !allowed:
					c := denial(t, m, "b", pod, "mesh/server", began)
					if c.Policy != "mesh/case" || !strings.Contains(c.Reason, test.attribute) {
						t.Errorf("%s was denied for %q: %s", pod, c.Policy, c.Reason)
					}
				}
			}
		})
	}
}

func allow(source string) string { return from("ALLOW", source) }
func deny(source string) string  { return from("DENY", source) }

func from(action, source string) string {
	return fmt.Sprintf("{action: %s, rules: [{from: [{source: {%s}}]}]}", action, source)
}

func when(key, values string) string {
	return fmt.Sprintf("{action: ALLOW, rules: [{when: [{key: '%s', %s}]}]}", key, values)
}

// IPv6 addresses are told apart as IPv4 ones are.
func TestBlocksOfIPv6(t *testing.T) {
	m := e2e.Start(t, authorization("six", allow("ipBlocks: ['fd00:7ac1:1::11', 'fd00:7ac1:1::30/127']")))
	m.Serve("mesh/server", ":8080", e2e.Echo)
	settle(t, m)
	for pod, allowed := range map[string]bool{"mesh/client": false, "mesh/twin": true, "mesh/near": false, "outside/plain": true} {
		if _, err := m.Call(pod, "[fd00:7ac1:2::10]:8080"); allowed && err != nil || !allowed && !denied(err) {
			t.Errorf("%s: %v", pod, err)
		}
		if _, err := m.Call(pod, server); !denied(err) {
			t.Errorf("%s by IPv4: %v, want a reset", pod, err)
		}
	}
}

// DENY comes before ALLOW; a policy of the root namespace covers the mesh.
func TestPoliciesTogether(t *testing.T) {
	m := e2e.Start(t,
		object("AuthorizationPolicy", "tacit-system", "no-near", deny("serviceAccounts: [mesh/near]")),
		authorization("clients", allow("serviceAccounts: [client]")),
		authorization("near", allow("serviceAccounts: [near]")))
	m.Serve("mesh/server", ":8080", e2e.Echo)
	settle(t, m)
	began := time.Now()
	if _, err := m.Call("mesh/client", server); err != nil {
		t.Errorf("client: %v", err)
	}
	for pod, policy := range map[string]string{"mesh/near": "tacit-system/no-near", "outside/plain": ""} {
		if _, err := m.Call(pod, server); !denied(err) {
			t.Errorf("%s: %v, want a reset", pod, err)
		}
		if c := denial(t, m, "b", pod, "mesh/server", began); policy != "" && c.Policy != policy {
			t.Errorf("%s was denied by %q", pod, c.Policy)
		}
	}
}

// A policy on dry run changes nothing and tells what it would.
func TestDryRun(t *testing.T) {
	m := e2e.Start(t)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	policy := strings.Replace(authorization("trial", deny("serviceAccounts: [near]")), "namespace: mesh}", `namespace: mesh, annotations: {"istio.io/dry-run": "true"}}`, 1)
	apply(t, m, policy)
	status := statusOf(t, m, "AuthorizationPolicy", "mesh/trial", func(s policyStatus) bool { return s.Name != "" })
	if status.Enforced || !strings.Contains(strings.Join(status.Messages, ";"), "dry run") {
		t.Errorf("its status is %+v", status)
	}
	proxy := m.Node("b").Proxy()
	mark, before := proxy.Mark(), m.Metric("b", "tacit_dry_run_total")
	for pod := range callers {
		if _, err := m.Call(pod, server); err != nil {
			t.Errorf("%s: %v", pod, err)
		}
	}
	logged(t, m, proxy, mark, map[string]any{"src.workload": "near", "outcome": "ok", "dry_run": "mesh/trial"})
	m.Eventually("the other ones have ended", func() error {
		if n := len(m.Connections("b", "ended", "mesh/", "mesh/server")); n != len(callers)-1 {
			return fmt.Errorf("%d have", n)
		}
		return nil
	})
	if got := m.Metric("b", "tacit_dry_run_total"); got != before+1 {
		t.Errorf("%v decisions are counted that it would have changed, want %v", got, before+1)
	}
}

// Of connections that carry no HTTP, nothing is known that only HTTP has: as in
// Istio, ALLOW rules about it never match, and DENY rules match by the rest.
func TestAttributesOfHTTP(t *testing.T) {
	m := e2e.Start(t)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	for _, test := range []struct{ name, spec, allowed string }{
		{"ALLOW", "{action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}]}, {from: [{source: {serviceAccounts: [near]}}]}]}",
			"near"},
		{"DENY", "{action: DENY, rules: [{from: [{source: {serviceAccounts: [near]}}], to: [{operation: {paths: [/admin]}}]}]}",
			"client twin plain"},
	} {
		t.Run(test.name, func(t *testing.T) {
			remove := apply(t, m, authorization("http", test.spec))
			statusOf(t, m, "AuthorizationPolicy", "mesh/http", func(s policyStatus) bool {
				return s.Enforced && len(s.Messages) == 0
			})
			for pod := range callers {
				_, name, _ := strings.Cut(pod, "/")
				_, err := m.Call(pod, server)
				if allowed := slices.Contains(strings.Fields(test.allowed), name); allowed && err != nil || !allowed && !denied(err) {
					t.Errorf("%s: %v", pod, err)
				}
			}
			remove()
		})
	}
}

// A burst of denials of one kind is a few lines and a count.
func TestFloodOfDenials(t *testing.T) {
	m := e2e.Start(t, authorization("nobody", "{action: ALLOW}"))
	settle(t, m)
	const burst = 200
	proxy := m.Node("b").Proxy()
	mark := proxy.Mark()
	for range burst {
		if _, err := m.Call("outside/plain", server); !denied(err) {
			t.Fatalf("call: %v, want a reset", err)
		}
	}
	lines, suppressed := 0, 0.0
	_, err := proxy.WaitLog(bounded(t), mark, func(line string) bool {
		switch fields := parse(line); fields["msg"] {
		case "connection denied":
			lines++
		case "connection denied, repeated":
			if fields["policy"] != "mesh/nobody" || fields["src.ip"] != callers["outside/plain"] {
				t.Errorf("the count is of %v", fields)
			}
			suppressed += fields["suppressed"].(float64)
		}
		return float64(lines)+suppressed == burst
	})
	if err != nil {
		t.Fatalf("%d lines and %v counted of %d denials: %v", lines, suppressed, burst, err)
	}
	if lines > 20 {
		t.Errorf("%d lines for %d denials", lines, burst)
	}
	if got := m.Metric("b", "tacit_denials_total", "direction=inbound", "reason=not_allowed"); got != burst {
		t.Errorf("%v denials are counted, want %d", got, burst)
	}
	if got := m.Metric("b", "tacit_log_lines_suppressed_total"); got != suppressed {
		t.Errorf("the metric has %v lines not written, the log %v", got, suppressed)
	}
}
