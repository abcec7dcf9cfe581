package kube

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// away is for how long something is gone.
const away = time.Minute

// wait lets time pass: nothing is to happen meanwhile.
func (e environment) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-e.ctx.Done():
		e.t.Fatal(e.ctx.Err())
	}
}

// While the control plane is away pods go on talking, proxies are replaced, and
// new pods take part whose identity their node has already.
func controlPlaneAway(e environment) {
	e.newNamespace("shop", inMesh())
	e.newNamespace("web", inMesh())
	e.serve("shop", "shop")
	web := e.load("web", "web", "shop.shop")
	e.awaitEncrypted("web")

	e.scale("tacitd", 0)
	e.atEnd(func(e environment) error {
		e.scale("tacitd", 1)
		return nil
	})
	e.wait(away)
	web.progress()
	e.roll("DaemonSet", "tacit-proxy")
	web.progress()
	web.wantNoFailure("the control plane is away")
	e.must(e.Patch(e.ctx, "apps/v1", "Deployment", "web", "web", fmt.Sprintf("spec: {replicas: %d}", 2*replicas)))
	e.must(e.AwaitDeployment(e.ctx, "web", "web"))
	web.progress()
	e.awaitEncrypted("web")
	web.wantNoFailure("new pods while the control plane is away")
	e.scale("tacitd", 1)
	web.progress()
	web.wantNoFailure("the control plane is back")
}

// scale sets the replicas of a Deployment of Tacit and waits for them.
func (e environment) scale(name string, replicas int) {
	e.t.Helper()
	e.must(e.Patch(e.ctx, "apps/v1", "Deployment", Namespace, name, fmt.Sprintf("spec: {replicas: %d}", replicas)))
	e.must(e.AwaitDeployment(e.ctx, Namespace, name))
}

// While the API server is away traffic goes on as it was.
func serverAway(e environment) {
	if !e.Ours() {
		e.t.Skip("takes the API server away: only on a cluster made here")
	}
	e.newNamespace("shop", inMesh())
	e.newNamespace("web", inMesh())
	e.serve("shop", "shop")
	web := e.load("web", "web", "shop.shop")
	e.awaitEncrypted("web")
	before := web.reports()

	e.must(e.StopServer())
	e.wait(away)
	e.must(e.StartServer(e.ctx))
	for pod, now := range web.reports() {
		// Each of four workers begins an exchange every 40 ms, at best.
		if done := now.Exchanges.Done - before[pod].Exchanges.Done; done < int64(away/time.Second) {
			e.t.Errorf("%s made %d exchanges while the API server was away for %v", pod, done, away)
		}
	}
	web.progress()
	e.awaitEncrypted("web")
	web.wantNoFailure("the API server was away")
}

// The power of all nodes fails and comes back: what makes pods start does not
// wait for what these pods are, DNS and control plane included. It fails again,
// and the CA's root is replaced: certificates of before are gone, so that it
// takes no longer than certificates live from then on.
func powerCut(e environment) {
	if !e.Ours() {
		e.t.Skip("cuts the power of nodes: only on a cluster made here")
	}
	e = e.within(8 * time.Minute)
	e.newNamespace("shop", inMesh())
	e.newNamespace("web", inMesh())
	e.serve("shop", "shop")
	web := e.load("web", "web", "shop.shop")
	e.awaitEncrypted("web")
	e.cutPower(func() {})
	e.awaitCapture("shop", true)
	e.awaitCapture("web", true)
	web.progress()
	e.awaitEncrypted("web")

	e.scale("tacitd", 0)
	e.cutPower(func() {
		e.shortenCertificates()
		e.must(e.Patch(e.ctx, "apps/v1", "Deployment", Namespace, "tacitd", "spec: {replicas: 1}"))
	})
	web.restart()
	e.replaceRoot(web)
}

// cutPower has the power of all nodes fail, does something meanwhile, and waits
// until all pods are back.
func (e environment) cutPower(meanwhile func()) {
	e.t.Helper()
	for _, node := range e.nodes {
		e.must(node.PowerCut())
	}
	meanwhile()
	boot := metav1.Now()
	for _, node := range e.nodes {
		e.must(node.Boot(e.ctx))
	}
	for namespace, name := range map[string]string{"shop": "shop", "web": "web", metav1.NamespaceSystem: "coredns", Namespace: "tacitd"} {
		for _, pod := range e.podNames(namespace, "") {
			e.eventually(pod+" is back", func() error {
				now, err := e.pod(namespace, pod)
				if err != nil {
					return err
				}
				return readyAgain(now, boot.Time)
			})
		}
		e.must(e.AwaitDeployment(e.ctx, namespace, name))
	}
}
