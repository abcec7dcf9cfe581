package kube

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

var storyFlag = flag.String("memory", "", "measure what pods take of a node's memory, with Tacit and with Envoy beside each, and write it to this `file`")

// storyPods are how many pods of a node are looked at.
var storyPods = []int{1, 10, 50, 100, 200}

// idleConnections is how many are held open between two pods.
const idleConnections = 1000

// memoryStory is what was measured, in bytes.
type memoryStory struct {
	Pods []memoryOfPods `json:"pods"`
	// Idle is what a thousand idle connections take, on both nodes together.
	Idle struct {
		Tacit int `json:"tacit"`
		Envoy int `json:"envoy"`
	} `json:"thousandIdleConnections"`
}

type memoryOfPods struct {
	Pods  int `json:"pods"`
	Proxy int `json:"proxy"`
	Agent int `json:"agent"`
	Envoy int `json:"envoy,omitempty"` // all of them; 0 where the machine has no room for so many
	// Own is without the pages of the program's file, which are the same for all
	// Envoys.
	ProxyOwn int `json:"proxyOwn"`
	AgentOwn int `json:"agentOwn"`
	EnvoyOwn int `json:"envoyOwn,omitempty"`
}

// roomForEnvoy is what the machine must have for each Envoy, in bytes: more
// than one takes, as its pod takes some as well.
const roomForEnvoy = 100 << 20

// TestMemory measures what the mesh takes of a node next to what sidecars take
// for the same.
func TestMemory(t *testing.T) {
	if *storyFlag == "" {
		t.Skip("measures for a long time: run make memory")
	}
	e := use(t).within(time.Hour)
	e.must(e.PublishTacit(e.ctx, tag, e.programs))
	e.must(e.InstallTacit(e.ctx, "install", tag, settings...))
	e.atEnd(func(e environment) error {
		_, err := e.Tacit(e.ctx, "uninstall", "--drain=1s")
		return err
	})
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	var story memoryStory
	for namespace, labels := range map[string]map[string]string{"tacit": inMesh(), "envoy": nil} {
		e.newNamespace(namespace, labels)
		e.must(e.Apply(e.ctx, fmt.Sprintf(echoService, namespace)))
	}
	mesh := e.newSidecarMesh("envoy")
	var first taken
	for _, pods := range storyPods {
		e.pin("tacit", "idle", pods, nodes[0], "")
		e.awaitCapture("tacit", true)
		now := e.settled(nodes[0])
		if pods == storyPods[0] {
			first = now
		}
		story.Pods = append(story.Pods, memoryOfPods{Pods: pods, Proxy: now.proxy, Agent: now.agent, ProxyOwn: now.proxyOwn, AgentOwn: now.agentOwn})
		e.wantLittle(pods, now, first)
		t.Logf("%d pods: %s", pods, now.since(first, pods))
	}
	e.pin("tacit", "idle", 0, nodes[0], "")
	e.pin("envoy", "idle", 0, nodes[0], "")
	mesh.add("envoy", "idle", nil)
	for i, pods := range storyPods {
		if available(t) < (pods-len(e.podNames("envoy", "")))*roomForEnvoy {
			break
		}
		e.pin("envoy", "idle", pods, nodes[0], "")
		story.Pods[i].Envoy = e.resident(nodes[0], "envoy", allPages)
		story.Pods[i].EnvoyOwn = e.resident(nodes[0], "envoy", ownPages)
		t.Logf("%+v", story.Pods[i])
	}
	e.pin("envoy", "idle", 0, nodes[0], "")
	story.Idle.Tacit = e.holdConnections("tacit", "tacit-proxy", nodes, nil)
	story.Idle.Envoy = e.holdConnections("envoy", "envoy", nodes, mesh)
	text, err := json.MarshalIndent(story, "", "  ")
	e.must(err, os.WriteFile(*storyFlag, append(text, '\n'), 0o644))
	t.Log(story)
}

// String is a table of it, in MB.
func (m memoryStory) String() string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(what string, figures ...int) {
		_, _ = fmt.Fprintf(w, "%s\t", what) // to memory
		for _, figure := range figures {
			text := "-"
			if figure > 0 {
				text = fmt.Sprintf("%.1f", float64(figure)/1e6)
			}
			_, _ = fmt.Fprintf(w, "%s\t", text)
		}
		_, _ = fmt.Fprintln(w)
	}
	_, _ = fmt.Fprintln(w, "resident, MB\tproxy\tagent\ttogether\tof it their own\tan Envoy each\tof it their own\t")
	for _, at := range m.Pods {
		line(fmt.Sprintf("%d pods", at.Pods), at.Proxy, at.Agent, at.Proxy+at.Agent, at.ProxyOwn+at.AgentOwn, at.Envoy, at.EnvoyOwn)
	}
	line(fmt.Sprintf("%d idle connections", idleConnections), 0, 0, m.Idle.Tacit, 0, m.Idle.Envoy, 0)
	_ = w.Flush() // to memory
	return "what pods take of a node\n" + out.String()
}

// available is how much memory the machine has yet, in bytes.
func available(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			var kilobytes int
			if _, err := fmt.Sscan(value, &kilobytes); err != nil {
				t.Fatal(err)
			}
			return kilobytes << 10
		}
	}
	t.Fatal("/proc/meminfo has no MemAvailable")
	return 0
}

const echoService = `
apiVersion: v1
kind: Service
metadata: {name: server, namespace: %s}
spec: {selector: {app: server}, ports: [{name: echo, port: 7000}, {name: web, port: 8080}]}
`

// holdConnections is what connections between two pods of two nodes take of a
// program, on both nodes together, while they are idle. The pods have sidecars
// of a mesh, if that is not nil.
func (e environment) holdConnections(namespace, program string, nodes []string, mesh *sidecarMesh) int {
	e.t.Helper()
	programs := map[string]string{"server": "serve", "client": ""}
	for i, name := range []string{"client", "server"} {
		e.pin(namespace, name, 1, nodes[i], programs[name])
		if mesh != nil {
			mesh.add(namespace, name, mesh.services)
			e.pin(namespace, name, 1, nodes[i], programs[name])
		}
	}
	if mesh == nil {
		e.awaitCapture(namespace, true)
	}
	both := func() int {
		e.settled(nodes[0]) // and with it the other
		sum := 0
		for _, node := range nodes[:2] {
			sum += e.resident(node, program, allPages)
		}
		return sum
	}
	before := both()
	client := clients{e, namespace, "client"}
	pod := client.pods()[0]
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	go func() { // ends with the pod, at the latest
		_, _ = e.Exec(ctx, namespace, pod, "/app", "client", "server", fmt.Sprintf("--streams=%d", idleConnections), "--pause=1h")
	}()
	e.awaitStreams(client, pod, idleConnections)
	if mesh != nil {
		if count, err := mesh.handshakes(namespace); err != nil || count < idleConnections {
			e.t.Errorf("%v of the connections among sidecars are over mutual TLS, error %v", count, err)
		}
	}
	return both() - before
}

// awaitStreams waits until a client has that many connections: for as long as the
// test may take, as a machine that measures memory may be slow.
func (e environment) awaitStreams(client clients, pod string, want int64) {
	e.t.Helper()
	for {
		report, err := client.report(pod)
		if err == nil && report.Streams.Done >= want {
			return
		}
		if e.ctx.Err() != nil {
			e.t.Fatalf("of %d connections there are %d, and %d failed, error %v: %q", want, report.Streams.Done, report.Streams.Failed, err, report.Streams.Errors)
		}
		select {
		case <-time.After(interval):
		case <-e.ctx.Done():
		}
	}
}
