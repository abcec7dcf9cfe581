package kube

import (
	"fmt"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
)

const onlyGood = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-good, namespace: %s}
spec:
  selector: {matchLabels: {app: shop}}
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/%s/sa/good"]}}]}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: good, namespace: %[2]s}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: bad, namespace: %[2]s}
`

// job is a number of pods, of which each runs the app once before its
// containers, in an init container, and once in one. A first failure is the
// end of it.
const job = `
apiVersion: batch/v1
kind: Job
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  completions: %[3]d
  parallelism: %[4]d
  backoffLimit: 0
  template:
    spec:
      serviceAccountName: %[2]s
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      initContainers: [{name: first, image: %[5]q, args: %[6]s}]
      containers: [{name: app, image: %[5]q, args: %[6]s}]
`

// The first thing that an init container or a Job does may be to use the
// network: it has its pod's identity by then.
func firstMoments(e environment) {
	e.identities("moments", 6, 6)
}

// Pods come and go faster than anything settles, and addresses of one identity
// soon are another's: each has its own identity throughout.
func storm(e environment) {
	e = e.within(8 * time.Minute)
	e.identities("storm", 100, 16)
}

// identities runs pods of two identities, of which a server lets in one.
func (e environment) identities(namespace string, pods, atATime int) {
	e.t.Helper()
	e.newNamespace(namespace, inMesh())
	e.must(e.Apply(e.ctx, fmt.Sprintf(onlyGood, namespace, namespace)))
	e.serve(namespace, "shop")
	e.awaitCapture(namespace, true)
	image, err := e.AppImage(e.ctx)
	e.must(err)
	url := fmt.Sprintf("http://shop.%s:8080/", namespace)
	e.must(e.Apply(e.ctx, fmt.Sprintf(job, namespace, "good", pods, atATime, image, `["get", "`+url+`"]`)))
	e.must(e.Apply(e.ctx, fmt.Sprintf(job, namespace, "bad", pods, atATime, image, `["denied", "`+url+`"]`)))
	for _, name := range []string{"good", "bad"} {
		err := Await(e.ctx, e.Cluster, namespace, name, func(j *batchv1.Job) error {
			if j.Status.Failed > 0 {
				return nil // looked at below
			}
			if int(j.Status.Succeeded) < pods {
				return fmt.Errorf("%d of %d pods have succeeded", j.Status.Succeeded, pods)
			}
			return nil
		})
		e.must(err)
	}
	logs, err := e.podLogs(e.ctx, namespace)
	e.must(err)
	for _, name := range []string{"good", "bad"} {
		e.must(Await(e.ctx, e.Cluster, namespace, name, func(j *batchv1.Job) error {
			if j.Status.Failed > 0 {
				e.t.Errorf("of pods %s %d failed and %d succeeded:\n%s", name, j.Status.Failed, j.Status.Succeeded, linesWith(logs, "/"+name+"-", "app: "))
			}
			return nil
		}))
	}
}

// linesWith are the lines of a text that contain one of some words.
func linesWith(text string, words ...string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		for _, word := range words {
			if strings.Contains(line, word) {
				out.WriteString(line)
				break
			}
		}
	}
	return out.String()
}
