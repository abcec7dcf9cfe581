package kube

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bounds of what proxy and agent of a node take together. The aim of mostPerPod
// is half of it: 130 KB were measured, when 40 pods come at once.
const (
	mostMemory = 96 << 20  // 62 MB by itself; 71 MB after the rest of the suite
	mostPerPod = 200 << 10 // from the first pod to the last
)

// residentMemory shows what the mesh takes of a node as its pods become more, which is
// what sidecars take for each of them.
func residentMemory(e environment) {
	if !e.Ours() {
		e.t.Skip("looks at processes of nodes: only on a cluster made here")
	}
	e = e.within(6 * time.Minute)
	e.newNamespace("memory", inMesh())
	image, err := e.AppImage(e.ctx)
	e.must(err)
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	first := 0
	for _, pods := range []int{1, 10, 50} {
		e.must(e.Apply(e.ctx, fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: idle, namespace: memory}
spec:
  replicas: %d
  selector: {matchLabels: {app: idle}}
  template:
    metadata: {labels: {app: idle}}
    spec:
      nodeSelector: {kubernetes.io/hostname: %s}
      terminationGracePeriodSeconds: 1
      containers: [{name: app, image: %q}]
`, pods, nodes[0], image)))
		e.must(e.AwaitDeployment(e.ctx, "memory", "idle"))
		e.awaitCapture("memory", true)
		proxy, agent := e.resident(nodes[0], "tacit-proxy"), e.resident(nodes[0], "tacit-agent")
		e.t.Logf("%3d pods: proxy %.1f MB and agent %.1f MB resident", pods, float64(proxy)/1e6, float64(agent)/1e6)
		if first == 0 {
			first = proxy + agent
		}
		if grown := proxy + agent - first; grown > (pods-1)*mostPerPod && pods >= 50 {
			e.t.Errorf("from 1 to %d pods they grew by %d KB, want %d KB a pod at most", pods, grown>>10, mostPerPod>>10)
		}
		if proxy+agent > mostMemory {
			e.t.Errorf("with %d pods proxy and agent take %d MB together, want %d MB at most", pods, (proxy+agent)>>20, mostMemory>>20)
		}
	}
}

// resident is the memory of all processes of a program on a node, in bytes.
func (e environment) resident(node, program string) int {
	e.t.Helper()
	out, err := e.Node(node).Run(e.ctx, "bash", "-c", `
for status in /proc/[0-9]*/status; do
  awk -v name="`+program+`" '$1 == "Name:" && $2 != name {exit} $1 == "VmRSS:" {print $2}' "$status"
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
