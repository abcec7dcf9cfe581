package kube

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// next is the tag of the version to come.
const next = "next"

// Each program works with others of one version before and after it, under load:
// live traffic goes on while it is replaced, and new pods take part.
func skew(e environment) {
	e = e.within(8 * time.Minute)
	e.must(e.PublishTacit(e.ctx, next, filepath.Join(e.programs, NextDirectory)))
	e.newNamespace("shop", inMesh())
	e.unpack("tacit-agent", next)
	e.newNamespace("web", inMesh())
	e.serve("shop", "shop")
	web := e.load("web", "web", "shop.shop")
	e.awaitEncrypted("web")
	for _, program := range []struct{ kind, name string }{
		{"DaemonSet", "tacit-proxy"}, {"DaemonSet", "tacit-agent"}, {"Deployment", "tacitd"},
	} {
		for _, version := range []string{next, tag} {
			when := fmt.Sprintf("%s of version %s", program.name, version)
			e.setTag(program.kind, program.name, version)
			e.awaitEncrypted("web")
			web.progress()
			web.wantNoFailure(when)
			if version != next {
				continue
			}
			e.wantStrangers(program.name)
			// New pods take part; and an old proxy has nothing to carry any more
			// when the next one is replaced.
			web.restart()
			e.awaitCapture("web", true)
			e.awaitEncrypted("web")
			web.wantNoFailure("new pods with " + when)
		}
	}
}

// unpack makes nodes ready to run an image of Tacit. Where one has to fetch it
// first, no agent is there meanwhile, and connections wait for that at most for
// the time that they may take to be made.
func (e environment) unpack(name, tag string) {
	e.t.Helper()
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	for _, node := range nodes {
		e.must(e.Apply(e.ctx, fmt.Sprintf(once, node, fmt.Sprintf("%s/%s:%s", e.Registry(), name, tag))))
	}
	for _, node := range nodes {
		e.must(Await(e.ctx, e.Cluster, "shop", "unpack-"+node, func(pod *corev1.Pod) error {
			if pod.Status.Phase != corev1.PodSucceeded {
				return fmt.Errorf("its phase is %s", pod.Status.Phase)
			}
			return nil
		}))
		e.must(e.Delete(e.ctx, "v1", "Pod", "shop", "unpack-"+node))
	}
}

const once = `
apiVersion: v1
kind: Pod
metadata: {name: unpack-%[1]s, namespace: shop, labels: {tacit.mesh/dataplane: disabled}}
spec:
  nodeName: %[1]s
  restartPolicy: Never
  containers: [{name: app, image: %[2]q, args: [--help]}]
`

// setTag replaces a program of Tacit by that of another image.
func (e environment) setTag(kind, name, tag string) {
	e.t.Helper()
	patch := []byte(fmt.Sprintf(`[{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "%s/%s:%s"}]`, e.Registry(), name, tag))
	apps := e.Client.AppsV1()
	var err error
	if kind == "DaemonSet" {
		_, err = apps.DaemonSets(Namespace).Patch(e.ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{})
		e.must(err)
		e.must(e.AwaitDaemonSet(e.ctx, Namespace, name))
		return
	}
	_, err = apps.Deployments(Namespace).Patch(e.ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{})
	e.must(err)
	e.must(e.AwaitDeployment(e.ctx, Namespace, name))
}

// wantStrangers checks that versions do differ: the control plane says so of
// proxies that are newer or older than it is.
func (e environment) wantStrangers(program string) {
	e.t.Helper()
	if program == "tacit-agent" {
		return // it has nothing to do with the control plane
	}
	e.eventually("tacitd notices another version", func() error {
		logs, err := e.podLogs(e.ctx, Namespace)
		if err == nil && !strings.Contains(logs, "proxy of another version") {
			err = errors.New("it does not say so")
		}
		return err
	})
}
