package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	inPlaceLabel    = "tacit.mesh/in-place-of-ztunnel"
	ambientLabel    = "istio.io/dataplane-mode"
	istioAnnotation = "ambient.istio.io/redirection"
)

// inAmbient are the labels of a namespace that Istio is to take into the mesh.
func inAmbient() map[string]string { return map[string]string{ambientLabel: "ambient"} }

// Tacit takes ztunnel's place on a cluster with Istio, node by node, and gives it
// back, as deploy/istio/README.md says. Istio is the real one: istiod says what
// the mesh is, and the agent of its CNI plugin names the pods and writes the rules.
func TestUnderIstio(t *testing.T) {
	e := use(t).within(8 * time.Minute)
	if !e.Ours() {
		t.Skip("looks at nodes from within")
	}
	defer func() {
		if t.Failed() {
			logs, err := e.podLogs(context.WithoutCancel(e.ctx), istioSystem)
			t.Log(logs, err)
		}
	}()
	e.must(e.PublishTacit(e.ctx, tag, e.programs))
	e.installIstio()
	e.deployInPlace()
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	e.oneNodeInPlace(nodes)
	e.handOver(nodes[1])
	web := e.meshUnderIstio()
	e.wantNoPrivileges(nodes)
	for _, name := range []string{"ztunnel-tacit-proxy", "ztunnel-tacit-agent", "istio-cni-node"} {
		e.rollIn(istioSystem, "DaemonSet", name)
		web.progress()
		web.wantNoFailure("rolling " + name)
	}
	e.comeAndGo()
	web.progress()
	web.wantNoFailure("pods came and went")
	e.giveBack(nodes, web)
}

// oneNodeInPlace switches the first node: its pods are enrolled, talk to each
// other over mutual TLS, and with the other node's in clear.
func (e environment) oneNodeInPlace(nodes []string) {
	e.t.Helper()
	e.handOver(nodes[0])
	e.newNamespace("near", inAmbient())
	e.newNamespace("far", nil)
	e.pin("near", "server", 1, nodes[0], `"serve"`)
	e.pin("near", "client", 1, nodes[0], "")
	e.pin("far", "server", 1, nodes[1], `"serve"`)
	e.awaitAnnotation("near", istioAnnotation, true)
	for to, security := range map[string]string{"near": "mutual_tls", "far": "unknown"} {
		addresses, err := e.PodAddresses(e.ctx, to, e.podNames(to, "app=server")[0])
		e.must(err)
		for _, address := range addresses {
			e.eventually("the pod's proxy tells of a call to "+address, func() error {
				before, err := e.countedFrom("near", to, security)
				if err = errors.Join(err, e.exchange("near", e.podNames("near", "app=client")[0], address)); err != nil {
					return err
				}
				now, err := e.countedFrom("near", to, security)
				if err == nil && now != before+1 {
					err = fmt.Errorf("%v calls are counted as %s, want 1", now-before, security)
				}
				return err
			})
			if err := e.exchange("far", e.podNames("far", "app=server")[0], address); err != nil {
				e.t.Errorf("a call from outside to %s: %v", address, err)
			}
		}
	}
}

// countedFrom is how many connections proxies in ztunnel's place have made for
// pods of a namespace.
func (e environment) countedFrom(from, to, security string) (float64, error) {
	return e.metricIn(istioSystem, "tacit-proxy", "15020", "istio_tcp_connections_opened_total",
		"reporter=source", "source_workload_namespace="+from, "destination_workload_namespace="+to, "connection_security_policy="+security)
}

// handOver has Tacit take a node, and waits until it has.
func (e environment) handOver(node string) {
	e.t.Helper()
	e.must(e.Patch(e.ctx, "v1", "Node", "", node, fmt.Sprintf("metadata: {labels: {%s: 'true'}}", inPlaceLabel)))
	e.atEnd(func(e environment) error { return e.keepFromTacit(node) })
	e.awaitDaemonsOn(node, "tacit-agent", 1)
	e.awaitDaemonsOn(node, "tacit-proxy", 1) // whose directories the agent makes, for which the kubelet looks ever more seldom
	e.awaitDaemonsOn(node, "ztunnel", 0)
}

func (e environment) awaitDaemonsOn(node, name string, want int) {
	e.t.Helper()
	e.eventuallyWithin(2*patience, fmt.Sprintf("%d ready pods of %s on %s", want, name, node), func() error { return e.daemonsOn(node, name, want) })
}

// daemonsOn says why there are not that many pods of a program on a node, or not
// ready. Pods of ztunnel never get ready here.
func (e environment) daemonsOn(node, name string, want int) error {
	list, err := e.Client.CoreV1().Pods(istioSystem).List(e.ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=" + name, FieldSelector: "spec.nodeName=" + node,
	})
	if err != nil {
		return err
	}
	if len(list.Items) != want {
		return fmt.Errorf("there are %d", len(list.Items))
	}
	for i := range list.Items {
		if err := podReady(&list.Items[i]); err != nil && name != "ztunnel" {
			return err
		}
	}
	return nil
}

// meshUnderIstio has a server on each node that lets in one account alone, and
// clients on each that are it. Whoever is not, or outside the mesh, is denied.
func (e environment) meshUnderIstio() clients {
	e.t.Helper()
	for _, namespace := range []string{"shop", "web"} {
		e.newNamespace(namespace, inAmbient())
	}
	e.serve("shop", "shop")
	e.must(e.Apply(e.ctx, fmt.Sprintf(requireTLS, "shop")+fmt.Sprintf(onlyFrom, "shop", "web", "false")))
	web := e.load("web", "web", "shop.shop")
	for _, namespace := range []string{"shop", "web"} {
		e.awaitAnnotation(namespace, istioAnnotation, true)
	}
	for namespace, pod := range map[string]string{"near": "client", "far": "server"} {
		e.eventually("an account from "+namespace+" is denied", func() error {
			_, err := e.Exec(e.ctx, namespace, e.podNames(namespace, "app="+pod)[0], "/app", "denied", "http://shop.shop:8080/")
			return err
		})
	}
	web.restart() // with what has come to pass before
	for _, server := range e.podNames("shop", "app=shop") {
		addresses, err := e.PodAddresses(e.ctx, "shop", server)
		e.must(err)
		for _, pod := range web.pods() {
			for _, address := range addresses {
				e.must(e.exchange("web", pod, address))
			}
		}
	}
	web.wantNoFailure("under Istio")
	e.askIstioctl()
	return web
}

// askIstioctl has it find the proxy of each node as it finds ztunnel, and ask it.
func (e environment) askIstioctl() {
	e.t.Helper()
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	for _, node := range nodes {
		cmd := exec.CommandContext(e.ctx, filepath.Join(istioPrograms, "istioctl"), "ztunnel-config", "connections", "--istioNamespace", istioSystem, "--node", node)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+e.Kubeconfig)
		said, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(said), "shop.shop.svc.cluster.local") {
			e.t.Errorf("istioctl ztunnel-config connections --node %s: %v, and shows no connection to the shop:\n%s", node, err, said)
		}
	}
}

// wantNoPrivileges looks at the proxies' processes.
func (e environment) wantNoPrivileges(nodes []string) {
	e.t.Helper()
	for _, node := range nodes {
		out, err := e.Node(node).Run(e.ctx, "bash", "-c", `
for status in /proc/[0-9]*/status; do
  grep -q '^Name:	tacit-proxy$' "$status" && grep -E '^(Uid|Cap[A-Z][a-z]+|NoNewPrivs|Seccomp):' "$status"
done 2>/dev/null
true`)
		e.must(err)
		const want = "Uid: 13371 13371 13371 13371 CapInh: 0000000000000000 CapPrm: 0000000000000000 CapEff: 0000000000000000 " +
			"CapBnd: 0000000000000000 CapAmb: 0000000000000000 NoNewPrivs: 1 Seccomp: 2"
		if got := strings.Join(strings.Fields(out), " "); got != want {
			e.t.Errorf("the proxy of %s is %s, want %s", node, got, want)
		}
	}
}

// comeAndGo makes pods while all of it runs, whose probes the kubelet makes, and
// deletes them: the proxies serve them, and let go of them.
func (e environment) comeAndGo() {
	e.t.Helper()
	before, err := e.served()
	e.must(err)
	pods := e.probed("shop")
	e.awaitAnnotation("shop", istioAnnotation, true)
	e.awaitServed(before + float64(len(pods)))
	e.must(e.Delete(e.ctx, "apps/v1", "Deployment", "shop", "probed"))
	e.awaitServed(before)
}

// served is how many pods the proxies of all nodes serve.
func (e environment) served() (float64, error) {
	return e.metricIn(istioSystem, "tacit-proxy", "15020", "workload_manager_active_proxy_count")
}

func (e environment) awaitServed(want float64) {
	e.t.Helper()
	e.eventually(fmt.Sprintf("%v pods are served", want), func() error {
		n, err := e.served()
		if err == nil && n != want {
			err = fmt.Errorf("there are %v", n)
		}
		return err
	})
}

// giveBack takes the labels off: ztunnel's pods are made, the ports in pods are
// free for it, and connections of before go on. With the last of them the proxies
// end, and nothing of Tacit's is left but where its sockets were.
func (e environment) giveBack(nodes []string, web clients) {
	e.t.Helper()
	before := web.reports()
	for _, node := range nodes {
		for _, there := range []string{listening, running} {
			if e.nothingFrom(node, there) == nil {
				e.t.Errorf("%s: nothing is found before: %s", node, there)
			}
		}
		e.must(e.keepFromTacit(node))
	}
	for _, node := range nodes {
		e.awaitDaemonsOn(node, "tacit-agent", 0)
		e.awaitDaemonsOn(node, "ztunnel", 1)
		e.eventually("the ports are free on "+node, func() error { return e.nothingFrom(node, listening) })
	}
	for pod, was := range before {
		e.eventually("connections of before go on in "+pod, func() error {
			now, err := web.report(pod)
			if err == nil && (now.Streams.Failed > 0 || now.Streams.Done < was.Streams.Done+stretch) {
				err = fmt.Errorf("%+v, and %+v before", now.Streams, was.Streams)
			}
			return err
		})
	}
	// Alone, for its connections to be closed: whose both ends vanish at once are
	// noticed by nobody but a proxy that waits for an answer.
	e.must(e.Delete(e.ctx, "v1", "Namespace", "", web.namespace))
	for _, node := range nodes {
		e.awaitDaemonsOn(node, "tacit-proxy", 0)
		if err := e.nothingFrom(node, `find /run/tacit ! -type d ! -type s; `+running); err != nil {
			e.t.Errorf("left on %s: %v", node, err)
		}
		_, err := e.Node(node).Run(e.ctx, "rm", "-r", "/run/tacit")
		e.must(err)
	}
}

// keepFromTacit takes the label off a node.
func (e environment) keepFromTacit(node string) error {
	return e.Patch(e.ctx, "v1", "Node", "", node, fmt.Sprintf("metadata: {labels: {%s: null}}", inPlaceLabel))
}

// listening prints what listens on ztunnel's ports in pods of a node.
const listening = `
for pod in /run/netns/*; do
  nsenter --net=$pod ss --no-header --listening --tcp --udp --numeric | grep -E ':(15001|15006|15008|15053)\b'
done`

// running prints Tacit's processes on a node.
const running = "pgrep tacit"

// nothingFrom says what a script prints on a node.
func (e environment) nothingFrom(node, script string) error {
	out, err := e.Node(node).Run(e.ctx, "bash", "-c", script+"\ntrue")
	if err == nil && out != "" {
		err = errors.New(out)
	}
	return err
}
