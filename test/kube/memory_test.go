package kube

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Bounds of what proxy and agent of a node take together.
const (
	mostMemory = 64 << 20  // with mostPods
	mostPerPod = 100 << 10 // from the first pod to the last
	mostPods   = 100
)

// residentMemory shows what the mesh takes of a node as its pods become more, which is
// what sidecars take for each of them.
func residentMemory(e environment) {
	if !e.Ours() {
		e.t.Skip("looks at processes of nodes: only on a cluster made here")
	}
	e = e.within(6 * time.Minute)
	e.newNamespace("memory", inMesh())
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	var first taken
	for _, pods := range []int{1, 10, mostPods} {
		e.pin("memory", "idle", pods, nodes[0], "")
		e.awaitCapture("memory", true)
		now := e.settled(nodes[0])
		if pods == 1 {
			first = now
		}
		e.t.Logf("%3d pods: %s", pods, now.since(first, pods))
		e.wantLittle(pods, now, first)
	}
}

// taken is what proxy and agent of a node take, in bytes.
type taken struct {
	proxy, agent       int
	proxyOwn, agentOwn int // without the pages of the programs' files
}

func (m taken) both() int { return m.proxy + m.agent }

// since says what takes how much, and what has grown since there was one pod.
func (m taken) since(first taken, pods int) string {
	text := fmt.Sprintf("proxy %.1f MB and agent %.1f MB resident, %.1f and %.1f of it their own",
		float64(m.proxy)/1e6, float64(m.agent)/1e6, float64(m.proxyOwn)/1e6, float64(m.agentOwn)/1e6)
	if more := pods - 1; more > 0 {
		grown := func(now, then int) int { return (now - then) / more >> 10 }
		text += fmt.Sprintf("; grown by %d and %d KB a pod, %d and %d of it their own", grown(m.proxy, first.proxy), grown(m.agent, first.agent),
			grown(m.proxyOwn, first.proxyOwn), grown(m.agentOwn, first.agentOwn))
	}
	return text
}

// wantLittle holds what proxy and agent take with a number of pods against the
// bounds; first is what they take with one.
func (e environment) wantLittle(pods int, now, first taken) {
	e.t.Helper()
	if grown := now.both() - first.both(); pods >= mostPods && grown > (pods-1)*mostPerPod {
		e.t.Errorf("from 1 to %d pods they grew by %d KB, want %d KB a pod at most: %s", pods, grown>>10, mostPerPod>>10, now.since(first, pods))
	}
	if pods <= mostPods && now.both() > mostMemory {
		e.t.Errorf("with %d pods proxy and agent take %d MB together, want %d MB at most: %s", pods, now.both()>>20, mostMemory>>20, now.since(first, pods))
	}
}

// pinned is a Deployment whose pods are all on one node.
const pinned = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: %[2]s}}
  template:
    metadata: {labels: {app: %[2]s}}
    spec:
      nodeSelector: {kubernetes.io/hostname: %[4]s}
      terminationGracePeriodSeconds: 1
      containers: [{name: app, image: %[5]q, args: [%[6]s]}]
`

// pin makes that many pods on a node, or as many less, and waits until there are
// so many.
func (e environment) pin(namespace, name string, pods int, node, args string) {
	e.t.Helper()
	image, err := e.AppImage(e.ctx)
	e.must(err)
	e.must(e.Apply(e.ctx, fmt.Sprintf(pinned, namespace, name, pods, node, image, args)))
	e.must(e.AwaitDeployment(e.ctx, namespace, name))
	selector := metav1.ListOptions{LabelSelector: "app=" + name}
	for there := pods + 1; there > pods; { // those that end are not the Deployment's any more
		list, err := e.Client.CoreV1().Pods(namespace).List(e.ctx, selector)
		e.must(err)
		if there = len(list.Items); there > pods {
			e.wait(interval)
		}
	}
}

// calm is for how long memory has to have stopped falling: twice as long as a
// program takes to notice that it has little to do, and some more.
const calm = 25 * time.Second

// settled is what proxy and agent of a node take once they have given back what
// a burst has needed; on a machine that is too busy for that, what they take
// after a while: there, what a burst begins goes on for longer.
func (e environment) settled(node string) (now taken) {
	e.t.Helper()
	const noise = 256 << 10
	least, since := 0, time.Now()
	for begin := time.Now(); time.Since(since) < calm && time.Since(begin) < 2*patience; e.wait(interval) {
		now = e.taken(node)
		if least == 0 || now.both() < least-noise {
			least, since = now.both(), time.Now()
		}
	}
	return now
}

// taken is what proxy and agent of a node take at this moment.
func (e environment) taken(node string) taken {
	e.t.Helper()
	const proxy, agent = "tacit-proxy", "tacit-agent"
	return taken{
		proxy: e.resident(node, proxy, allPages), proxyOwn: e.resident(node, proxy, ownPages),
		agent: e.resident(node, agent, allPages), agentOwn: e.resident(node, agent, ownPages),
	}
}

// Which pages of a program are counted, by their names in /proc/PID/status.
const (
	allPages = "VmRSS:"
	ownPages = "RssAnon:" // without those that processes of one program share
)

// resident is the memory of all processes of a program on a node, in bytes.
func (e environment) resident(node, program, pages string) int {
	e.t.Helper()
	out, err := e.Node(node).Run(e.ctx, "bash", "-c", `
for status in /proc/[0-9]*/status; do
  awk -v name="`+program+`" '$1 == "Name:" && $2 != name {exit} $1 == "`+pages+`" {print $2}' "$status"
done 2>/dev/null
true`)
	e.must(err)
	sum := 0
	for _, field := range strings.Fields(out) {
		kilobytes, err := strconv.Atoi(field)
		e.must(err)
		sum += kilobytes << 10
	}
	if sum == 0 {
		e.t.Fatalf("no process %s on %s", program, node)
	}
	return sum
}
