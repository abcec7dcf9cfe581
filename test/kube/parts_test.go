package kube

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// What is checked here needs no cluster.

// A layer has the files and directories asked for, parents first, links as
// they are.
func TestLayer(t *testing.T) {
	dir := t.TempDir()
	err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "tree", "usr"), 0o755),
		os.WriteFile(filepath.Join(dir, "tree", "usr", "tool"), []byte("tool"), 0o755),
		os.Symlink("usr", filepath.Join(dir, "tree", "bin")),
		os.WriteFile(filepath.Join(dir, "program"), []byte("program"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := newLayer([]file{{filepath.Join(dir, "tree"), "/"}, {filepath.Join(dir, "program"), "/usr/local/bin/program"}})
	if err != nil {
		t.Fatal(err)
	}
	archive, err := layer.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(archive); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		line := header.Name
		if header.Typeflag == tar.TypeSymlink {
			line += " -> " + header.Linkname
		}
		got = append(got, line)
	}
	want := []string{"tmp/", "bin -> usr", "usr/", "usr/tool", "usr/local/", "usr/local/bin/", "usr/local/bin/program"}
	if !slices.Equal(got, want) {
		t.Errorf("the layer has %q, want %q", got, want)
	}
}

// Every file of a node is complete, and those that others read are well-formed.
func TestNodeFiles(t *testing.T) {
	values := nodeValues{addressPlan: planNode(1), Peers: []addressPlan{planNode(2)}, Gateway4: gateway4, Gateway6: gateway6, DNS: clusterDNS, PauseImage: "pause"}
	for _, name := range []string{"init.sh", "containerd.toml", "kubelet.yaml", "podnet.conflist", "network"} {
		text, err := fill("node/"+name, values)
		if err != nil || strings.Contains(string(text), "{{") {
			t.Errorf("%s: %v in\n%s", name, err, text)
			continue
		}
		var parsed any
		switch filepath.Ext(name) {
		case ".yaml":
			err = yaml.Unmarshal(text, &parsed)
		case ".conflist":
			err = json.Unmarshal(text, &parsed)
		}
		if err != nil {
			t.Errorf("%s: %v in\n%s", name, err, text)
		}
	}
	network, _ := fill("node/network", values)
	if route := "route add 10.244.2.0/24 via 10.89.0.12"; !strings.Contains(string(network), route) {
		t.Errorf("no %q in\n%s", route, network)
	}
}

func TestDaemonsReady(t *testing.T) {
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Generation: 3, Annotations: map[string]string{appsv1.DeprecatedTemplateGeneration: "2"}}}
	set.Status = appsv1.DaemonSetStatus{ObservedGeneration: 3, DesiredNumberScheduled: 1}
	pod := func(generation string, ready corev1.ConditionStatus, ending bool) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{podGeneration: generation}}}
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
		if ending {
			p.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		}
		return p
	}
	for _, tt := range []struct {
		name string
		pods []corev1.Pod
		done bool
	}{
		{"none", nil, false},
		{"the old one", []corev1.Pod{pod("1", corev1.ConditionTrue, false)}, false},
		{"the new one starts", []corev1.Pod{pod("1", corev1.ConditionTrue, false), pod("2", corev1.ConditionFalse, false)}, false},
		{"the new one is there and the old one drains", []corev1.Pod{pod("1", corev1.ConditionFalse, true), pod("2", corev1.ConditionTrue, false)}, true},
		{"the new one ends", []corev1.Pod{pod("2", corev1.ConditionTrue, true)}, false},
	} {
		if err := daemonsReady(set, tt.pods); (err == nil) != tt.done {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	set.Generation = 4
	if daemonsReady(set, []corev1.Pod{pod("2", corev1.ConditionTrue, false)}) == nil {
		t.Error("a change that the controller has not seen yet counts as done")
	}
}

// The table of what pods take has all that was measured.
func TestMemoryTable(t *testing.T) {
	story := memoryStory{Pods: []memoryOfPods{{Pods: 100, Proxy: 30e6, Agent: 33e6, ProxyOwn: 9e6, AgentOwn: 8e6, Envoy: 6700e6, EnvoyOwn: 1400e6}, {Pods: 200, Proxy: 35e6, Agent: 36e6}}}
	story.Idle.Tacit, story.Idle.Envoy = 62e6, 97e6
	var got []string
	for line := range strings.Lines(story.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"what pods take of a node", "resident, MB proxy agent together of it their own an Envoy each of it their own",
		"100 pods 30.0 33.0 63.0 17.0 6700.0 1400.0", "200 pods 35.0 36.0 71.0 - - -", "1000 idle connections - - 62.0 - 97.0 -",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
