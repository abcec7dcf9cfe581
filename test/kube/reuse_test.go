package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/test/kube/load"
)

// onNode is a pod that serves on a node, with an account of its own.
const onNode = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[2]s, namespace: %[1]s}
---
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s, labels: {app: %[2]s}}
spec:
  nodeName: %[3]s
  serviceAccountName: %[2]s
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers: [{name: app, image: %[4]q, args: [serve], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]
`

const nobodyTo = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: %[1]s}
spec:
  selector: {matchLabels: {app: %[2]s}}
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/nowhere/sa/nobody"]}}]}]
`

// inPlaceOfIPAM stands before the plugin that gives out addresses: the pod new
// waits until an address is free, and gets that one, some milliseconds after
// another pod had it.
const inPlaceOfIPAM = `#!/bin/bash
case "$CNI_COMMAND;$CNI_ARGS;" in
ADD*";K8S_POD_NAME=new;"*)
  while [ -e /var/lib/cni/networks/podnet/%[1]s ]; do sleep 0.01; done
  printf %[2]s >/var/lib/cni/networks/podnet/last_reserved_ip.0
esac
exec /opt/cni/bin/host-local.real
`

// An address that another workload gets the moment one has left it brings that
// one nothing of what was meant for the other, and nobody is told by it what
// the other would have said.
func addressReused(e environment) {
	if !e.Ours() {
		e.t.Skip("gives out addresses of pods: only on a cluster made here")
	}
	const namespace = "reuse"
	e.newNamespace(namespace, inMesh())
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	image, err := e.AppImage(e.ctx)
	e.must(err)
	e.must(e.Apply(e.ctx, fmt.Sprintf(onNode, namespace, "old", nodes[0], image)))
	e.must(e.AwaitPod(e.ctx, namespace, "old"))
	addresses, err := e.PodAddresses(e.ctx, namespace, "old")
	e.must(err)
	web := e.load(namespace, "web", addresses[0])
	e.must(e.Apply(e.ctx, fmt.Sprintf(nobodyTo, namespace, "new")))

	e.reserve(nodes[0], addresses[0])
	e.must(e.Apply(e.ctx, fmt.Sprintf(onNode, namespace, "new", nodes[0], image)))
	at := int64(0)
	e.must(e.Client.CoreV1().Pods(namespace).Delete(e.ctx, "old", metav1.DeleteOptions{GracePeriodSeconds: &at}))
	e.must(e.AwaitPod(e.ctx, namespace, "new"))
	now, err := e.PodAddresses(e.ctx, namespace, "new")
	e.must(err)
	if now[0] != addresses[0] {
		e.t.Fatalf("the new pod has the address %s, want %s", now[0], addresses[0])
	}
	for pod, before := range web.reports() {
		e.eventually(pod+" is denied", func() error {
			report, err := web.report(pod)
			if err == nil && report.Exchanges.Failed < before.Exchanges.Failed+stretch {
				err = errors.New("not often enough yet")
			}
			return err
		})
		report, err := web.report(pod)
		e.must(err)
		if n := report.Servers["new"]; n > 0 {
			e.t.Errorf("%s had %d answers from the new pod", pod, n)
		}
	}
	taken, err := e.Exec(e.ctx, namespace, "new", "/app", "get", load.TakenURL)
	e.must(err)
	if taken != "0" {
		e.t.Errorf("the new pod took %s connections that were not for it", taken)
	}

	e.must(e.Delete(e.ctx, "security.istio.io/v1", "AuthorizationPolicy", namespace, "nobody"))
	web.progress()
	e.awaitEncrypted(namespace)
	for pod, report := range web.reports() {
		if report.Servers["new"] == 0 {
			e.t.Errorf("%s had answers from %v, and none from the new pod that may give them", pod, report.Servers)
		}
	}
}

// reserve keeps an address of a node for the pod new, until the test ends.
func (e environment) reserve(node, address string) {
	e.t.Helper()
	before := netip.MustParseAddr(address).Prev()
	run := func(e environment, script string) error {
		cmd := e.Node(node).Command(e.ctx, "bash", "-ec", script)
		cmd.Stdin = strings.NewReader(fmt.Sprintf(inPlaceOfIPAM, address, before))
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	e.atEnd(func(e environment) error {
		return run(e, "cd /opt/cni/bin; [ ! -e host-local.real ] || mv host-local.real host-local")
	})
	e.must(run(e, "cd /opt/cni/bin; cat >new; chmod 755 new; cp -p host-local host-local.real; mv new host-local"))
}
