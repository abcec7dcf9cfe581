package kube

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
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
	e.newNamespace("tacit", inMesh())
	e.newNamespace("envoy", nil)
	for i, pods := range storyPods {
		e.pin("tacit", "idle", pods, nodes[0], "")
		e.awaitCapture("tacit", true)
		proxy, agent := e.settled(nodes[0])
		e.pin("tacit", "idle", 0, nodes[0], "")
		story.Pods = append(story.Pods, memoryOfPods{Pods: pods, Proxy: proxy, Agent: agent})
		if available(t) > pods*roomForEnvoy {
			e.pin("envoy", "idle", pods, nodes[0], "")
			if i == 0 {
				e.setSidecar("envoy", "idle", true)
				e.pin("envoy", "idle", pods, nodes[0], "")
			}
			story.Pods[i].Envoy = e.resident(nodes[0], "envoy")
			e.pin("envoy", "idle", 0, nodes[0], "")
		}
		t.Logf("%+v", story.Pods[i])
	}
	story.Idle.Tacit = e.holdConnections("tacit", "tacit-proxy", nodes)
	story.Idle.Envoy = e.holdConnections("envoy", "envoy", nodes)
	t.Logf("%d idle connections: %+v", idleConnections, story.Idle)
	text, err := json.MarshalIndent(story, "", "  ")
	e.must(err, os.WriteFile(*storyFlag, append(text, '\n'), 0o644))
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

// holdConnections is what connections between two pods of two nodes take of a
// program, on both nodes together, while they are idle.
func (e environment) holdConnections(namespace, program string, nodes []string) int {
	e.t.Helper()
	e.pin(namespace, "server", 1, nodes[1], "serve")
	e.pin(namespace, "client", 1, nodes[0], "")
	if program == "envoy" {
		for i, name := range []string{"client", "server"} {
			e.setSidecar(namespace, name, true)
			e.pin(namespace, name, 1, nodes[i], map[string]string{"server": "serve"}[name])
		}
	} else {
		e.awaitCapture(namespace, true)
	}
	addresses, err := e.PodAddresses(e.ctx, namespace, e.podNames(namespace, "app=server")[0])
	e.must(err)
	both := func() int {
		sum := 0
		for _, node := range nodes[:2] {
			e.settled(node)
			sum += e.resident(node, program)
		}
		return sum
	}
	before := both()
	client := clients{e, namespace, "client"}
	pod := client.pods()[0]
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	go func() { // ends with the pod, at the latest
		_, _ = e.Exec(ctx, namespace, pod, "/app", "client", addresses[0], fmt.Sprintf("--streams=%d", idleConnections), "--pause=1h")
	}()
	e.eventually("connections are there", func() error {
		report, err := client.report(pod)
		if err == nil && report.Streams.Done < idleConnections {
			err = fmt.Errorf("%d of them, and %d failed", report.Streams.Done, report.Streams.Failed)
		}
		return err
	})
	return both() - before
}
