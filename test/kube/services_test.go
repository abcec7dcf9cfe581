package kube

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const statefulServices = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: services}
spec:
  serviceName: db
  replicas: 4
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: db}}}
      containers:
      - name: app
        image: %[1]q
        args: [serve]
        ports: [{name: web, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: web}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: unready, namespace: services, labels: {app: unready}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: app, image: %[1]q, args: [serve], readinessProbe: {tcpSocket: {port: 1}}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: services}
spec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: named, namespace: services}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: db}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: services}
spec: {internalTrafficPolicy: Local, selector: {app: db}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky, namespace: services}
spec: {sessionAffinity: ClientIP, selector: {app: db}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: early, namespace: services}
spec: {publishNotReadyAddresses: true, selector: {app: unready}, ports: [{port: 80, targetPort: 8080}]}
`

// What Kubernetes promises of services holds for captured pods, and policies may
// name them.
func services(e environment) {
	e.newNamespace("services", inMesh())
	image, err := e.AppImage(e.ctx)
	e.must(err)
	e.must(e.Apply(e.ctx, fmt.Sprintf(statefulServices, image)))
	e.workload("services", "client", nil, "")
	e.must(e.AwaitDeployment(e.ctx, "services", "client"))
	for i := range 4 {
		e.must(e.AwaitPod(e.ctx, "services", fmt.Sprintf("db-%d", i)))
	}
	before, err := e.encrypted("services")
	e.must(err)
	asked := 0
	from := e.podNames("services", "app=client")
	for _, client := range from {
		node := e.nodeOf("services", client)
		ask := func(host string) string { // the pod that answers
			var answer string
			e.eventually(client+" asks "+host, func() error {
				out, err := e.Exec(e.ctx, "services", client, "/app", "get", "http://"+host+"/")
				answer, _, _ = strings.Cut(out, " ")
				return err
			})
			asked++
			return answer
		}
		for i := range 4 {
			if name := fmt.Sprintf("db-%d", i); ask(name+".db:8080") != name {
				e.t.Errorf("%s by its own name is another pod", name)
			}
		}
		if got := ask("early"); got != "unready" {
			e.t.Errorf("service early leads to %q", got)
		}
		sticky, all := map[string]bool{}, map[string]bool{}
		for range 12 {
			sticky[ask("sticky")], all[ask("named")] = true, true
			if server := ask("local"); e.nodeOf("services", server) != node {
				e.t.Errorf("service local leads from %s to %s, which is elsewhere", node, server)
			}
		}
		if len(sticky) != 1 {
			e.t.Errorf("session affinity leads one client to %v", sticky)
		}
		if len(all) < 2 {
			e.t.Errorf("service named leads to %v alone", all)
		}
	}
	// The pool keeps nothing from before: each request was a connection.
	if now, err := e.encrypted("services"); err != nil || now-before < float64(asked) {
		e.t.Errorf("%d requests were made, %v of them over mutual TLS, error %v", asked, now-before, err)
	}
	e.targetedPolicies(from[0])
}

func (e environment) nodeOf(namespace, pod string) string {
	e.t.Helper()
	p, err := e.pod(namespace, pod)
	e.must(err)
	return p.Spec.NodeName
}

func (e environment) pod(namespace, name string) (*corev1.Pod, error) {
	return e.Client.CoreV1().Pods(namespace).Get(e.ctx, name, metav1.GetOptions{})
}
