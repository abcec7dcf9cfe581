package build

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

const threePods = `
kind: Pod
metadata: {name: a, namespace: ns, labels: {app: x}}
spec: {containers: [{name: c, ports: [{name: dns, protocol: UDP, containerPort: 1}, {name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 198.18.1.1}, {ip: "fd00:7ac1::1"}]}
---
kind: Pod
metadata: {name: b, namespace: ns, labels: {app: x}}
spec: {containers: [{name: c}], initContainers: [{name: i, ports: [{name: http, containerPort: 1}]}, {name: j, restartPolicy: Always, ports: [{name: http, containerPort: 9090}]}]}
status: {podIPs: [{ip: 198.18.1.2}]}
---
kind: Pod
metadata: {name: c, namespace: ns, labels: {app: x}}
status: {podIPs: [{ip: 198.18.1.3}]}
---
kind: Pod
metadata: {name: d, namespace: other, labels: {app: x}}
status: {podIPs: [{ip: 198.18.1.4}]}
---
`

func slice(text string) string {
	return "\n---\nkind: EndpointSlice\nmetadata: {name: s-1, namespace: ns, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\n" + text
}

func TestEndpoints(t *testing.T) {
	const service = "kind: Service\nmetadata: {name: s, namespace: ns}\nspec: {selector: {app: x}, ports: [{name: web, port: 80, targetPort: http}, {name: raw, port: 90, targetPort: 9}]}"
	const ports = "ports: [{name: web, port: 1234}, {name: raw, port: 9, protocol: TCP}, {name: web, port: 5, protocol: UDP}, {name: extra, port: 6}]\n"
	ref := func(name string) string { return "targetRef: {kind: Pod, name: " + name + "}" }
	for _, test := range []struct{ name, text, want string }{
		{"by selector", service, "a 80>8080 90>9, b 80>9090 90>9, c 90>9"},
		{"by selector, without one", strings.Replace(service, "selector: {app: x}, ", "", 1), ""},
		{"by slice", service + slice(ports+"endpoints: [{addresses: [198.18.1.1], "+ref("a")+"}]"), "a 80>1234 90>9"},
		{"two slices", service + slice(ports+"endpoints: [{addresses: [198.18.1.1], "+ref("a")+"}]") +
			strings.NewReplacer("s-1", "s-2", "IPv4", "IPv6").Replace(slice(ports+`endpoints: [{addresses: ["fd00:7ac1::1"], `+ref("a")+"}, {addresses: ['fd00:7ac1::2'], "+ref("b")+"}]")),
			"a 80>1234 90>9, b 80>1234 90>9"},
		{"by address", service + slice(ports+"endpoints: [{addresses: [198.18.1.2]}]"), "b 80>1234 90>9"},
		{"a pod that is gone", service + slice(ports+"endpoints: [{addresses: [198.18.1.9], "+ref("gone")+"}]"), ""},
		{"not ready", service + slice(ports+"endpoints: [{addresses: [198.18.1.1], conditions: {ready: false}}, {addresses: [198.18.1.2], conditions: {ready: true}}]"), "b 80>1234 90>9"},
		{"on its way out", service + slice(ports+"endpoints: [{addresses: [198.18.1.1], conditions: {ready: false, serving: true, terminating: true}}]"), "a(terminating) 80>1234 90>9"},
		{"on its way out, not serving", service + slice(ports+"endpoints: [{addresses: [198.18.1.1], conditions: {ready: false, serving: false, terminating: true}}]"), ""},
		{"no pod", service + slice(ports+"endpoints: [{addresses: [198.18.7.7], nodeName: n1, zone: z2}]"), "s-1/198.18.7.7(host) 80>1234 90>9"},
		{"a pod of another namespace", service + slice(ports+"endpoints: [{addresses: [198.18.1.4], targetRef: {kind: Pod, name: d, namespace: other}}]"), "d 80>1234 90>9"},
		{"by another namespace's name alone", service + slice(ports+"endpoints: [{addresses: [198.18.1.1], targetRef: {kind: Pod, name: d, namespace: other}}]"), "a 80>1234 90>9"},
		{"not another's on its way out", service + slice(ports+"endpoints: [{addresses: [198.18.1.4], targetRef: {kind: Pod, name: d, namespace: other}, conditions: {serving: true, terminating: true}}]"), "d 80>1234 90>9"},
		{"empty slice wins over the selector", service + slice(ports+"endpoints: []"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := Build(Settings{}, objects(t, strings.TrimPrefix(threePods, "\n")+test.text))
			var got []string
			for _, w := range r.Workloads {
				ports, ok := w.Services["ns/s.ns.svc.cluster.local"]
				if !ok {
					continue
				}
				text := w.Name
				if w.Terminating {
					text += "(terminating)"
				}
				if w.HostNetwork {
					text += "(host)"
				}
				for _, p := range ports {
					text += fmt.Sprintf(" %d>%d", p.Service, p.Target)
				}
				got = append(got, text)
			}
			if strings.Join(got, ", ") != test.want || len(r.Problems) > 0 {
				t.Errorf("got %q, want %q; problems %v", strings.Join(got, ", "), test.want, r.Problems)
			}
		})
	}
}

// An address that is no pod's is reached through its service alone: it must
// not stand in the way of the service or pod that has the address.
func TestForeignEndpointTakesOverNothing(t *testing.T) {
	r := Build(Settings{}, objects(t, "kind: Service\nmetadata: {name: victim, namespace: v}\nspec: {clusterIP: 198.18.9.1}\n---\n"+
		"kind: Service\nmetadata: {name: s, namespace: ns}\nspec: {ports: [{port: 80}]}"+slice("ports: [{name: '', port: 80}]\nendpoints: [{addresses: [198.18.9.1]}]")))
	s := model.NewSnapshot().Apply(r.Since(nil))
	if w := s.WorkloadAt("", netip.MustParseAddr("198.18.9.1")); w != nil {
		t.Errorf("%s answers for the address of another service", w.UID)
	}
	if len(r.Workloads) != 1 || r.Workloads[0].Protocol != model.ProtocolTCP {
		t.Errorf("workloads %v", r.Workloads)
	}
}
