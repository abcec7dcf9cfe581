package kube

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/tacit-mesh/tacit/deploy/check"
)

// letInGood is a NetworkPolicy as it stands before Tacit comes, and with the
// port of HBONE added.
const letInGood = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-good, namespace: %s}
spec:
  podSelector: {matchLabels: {app: shop}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: good}}}]
    ports: [%s]
`

// NetworkPolicies go on to hold for pods in the mesh, for two pods of one node
// as well, and tacit check finds those that leave no way to them. The CNI plugins of the cluster that is made here do not
// enforce any, so rules of the nodes stand in.
func networkPolicies(e environment) {
	const namespace = "netpol"
	e.newNamespace(namespace, inMesh())
	e.serve(namespace, "shop")
	for _, name := range []string{"good", "bad"} {
		e.workload(namespace, name, nil, "")
		e.must(e.AwaitDeployment(e.ctx, namespace, name))
	}
	e.awaitCapture(namespace, true)

	const before = "{port: 7000}, {port: 8080}"
	e.must(e.Apply(e.ctx, fmt.Sprintf(letInGood, namespace, before)))
	if f := e.finding("NetworkPolicy", namespace+"/only-good"); f.Level != check.Broken || !strings.Contains(f.Do, "15008") {
		e.t.Errorf("tacit check says of a NetworkPolicy without port 15008: %+v", f)
	}
	e.must(e.Apply(e.ctx, fmt.Sprintf(letInGood, namespace, before+", {port: 15008}")))
	if f := e.finding("NetworkPolicy", namespace+"/only-good"); f.Level != "" {
		e.t.Errorf("tacit check says of a NetworkPolicy with port 15008: %+v", f)
	}

	e.enforceOnlyGood(namespace)
	var asked sync.WaitGroup
	for _, server := range e.podNames(namespace, "app=shop") {
		addresses, err := e.PodAddresses(e.ctx, namespace, server)
		e.must(err)
		for _, good := range e.podNames(namespace, "app=good") {
			for _, address := range addresses {
				e.eventually(good+" reaches "+address, func() error { return e.exchange(namespace, good, address) })
			}
		}
		for _, bad := range e.podNames(namespace, "app=bad") {
			for _, address := range addresses {
				asked.Go(func() {
					if e.exchange(namespace, bad, address) == nil {
						e.t.Errorf("%s reached %s on %s against a NetworkPolicy", bad, address, server)
					}
				})
			}
		}
	}
	asked.Wait()
}

// enforceOnlyGood puts rules on the nodes that mean what the policy means,
// until the test ends. A cluster that is not ours has to do so itself.
func (e environment) enforceOnlyGood(namespace string) {
	e.t.Helper()
	if !e.Ours() {
		return
	}
	addresses := func(app string) (all []string) {
		for _, pod := range e.podNames(namespace, "app="+app) {
			of, err := e.PodAddresses(e.ctx, namespace, pod)
			e.must(err)
			all = append(all, of...)
		}
		return all
	}
	var rules strings.Builder
	for _, server := range addresses("shop") {
		for _, client := range addresses("good") {
			if iptables(client) == iptables(server) {
				fmt.Fprintf(&rules, "%s -A TEST -s %s -d %s -p tcp -m multiport --dports 7000,8080,15008 -j RETURN\n", iptables(server), client, server)
			}
		}
		fmt.Fprintf(&rules, "%s -A TEST -d %s -p tcp --syn -j DROP\n", iptables(server), server)
	}
	for _, node := range e.nodes {
		e.atEnd(func(e environment) error {
			_, err := node.Run(e.ctx, "bash", "-ec", "for t in iptables ip6tables; do $t -D FORWARD -j TEST; $t -F TEST; $t -X TEST; done")
			return err
		})
		_, err := node.Run(e.ctx, "bash", "-ec", "for t in iptables ip6tables; do $t -N TEST; $t -I FORWARD -j TEST; done\n"+rules.String())
		e.must(err)
	}
}

// iptables is the program for rules about an address.
func iptables(address string) string {
	if strings.Contains(address, ":") {
		return "ip6tables"
	}
	return "iptables"
}

// finding is what tacit check says about something; none is of no level.
func (e environment) finding(topic, subject string) check.Finding {
	e.t.Helper()
	out, err := e.Tacit(e.ctx, "check", "--output=json", "--all")
	var report check.Report
	if decoded := json.Unmarshal([]byte(out), &report); decoded != nil {
		e.t.Fatal("tacit check: ", err, decoded, out)
	}
	for _, f := range report.Findings {
		if f.Topic == topic && f.Subject == subject {
			return f
		}
	}
	return check.Finding{}
}
