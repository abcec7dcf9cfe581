package kube

import (
	"errors"
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
	e.eachPath(namespace, "good", func(good, address string) {
		e.eventually(good+" reaches "+address, func() error { return e.exchange(namespace, good, address) })
	})
	e.eachPath(namespace, "bad", func(bad, address string) {
		asked.Go(func() {
			if e.exchange(namespace, bad, address) == nil {
				e.t.Errorf("%s reached %s against a NetworkPolicy", bad, address)
			}
		})
	})
	asked.Wait()

	// It was the policy and nothing else: without it the same pods get through.
	// It comes last because connections between proxies, once made, stay.
	e.must(e.Delete(e.ctx, "networking.k8s.io/v1", "NetworkPolicy", namespace, "only-good"), e.liftOnlyGood())
	e.eachPath(namespace, "bad", func(bad, address string) {
		e.eventually(bad+" reaches "+address+" without a NetworkPolicy", func() error { return e.exchange(namespace, bad, address) })
	})
}

// eachPath is every pod of an app with every address of the shop's pods.
func (e environment) eachPath(namespace, app string, do func(client, address string)) {
	e.t.Helper()
	for _, server := range e.podNames(namespace, "app=shop") {
		addresses, err := e.PodAddresses(e.ctx, namespace, server)
		e.must(err)
		for _, client := range e.podNames(namespace, "app="+app) {
			for _, address := range addresses {
				do(client, address)
			}
		}
	}
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
	e.atEnd(environment.liftOnlyGood)
	for _, node := range e.nodes {
		_, err := node.Run(e.ctx, "bash", "-ec", "for t in iptables ip6tables; do $t -N TEST; $t -I FORWARD -j TEST; done\n"+rules.String())
		e.must(err)
	}
}

// liftOnlyGood takes those rules away, if they are there.
func (e environment) liftOnlyGood() error {
	if !e.Ours() {
		return nil
	}
	var errs []error
	for _, node := range e.nodes {
		_, err := node.Run(e.ctx, "bash", "-ec", "for t in iptables ip6tables; do ! $t -D FORWARD -j TEST 2>/dev/null || { $t -F TEST; $t -X TEST; }; done")
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// iptables is the program for rules about an address.
func iptables(address string) string {
	if strings.Contains(address, ":") {
		return "ip6tables"
	}
	return "iptables"
}
