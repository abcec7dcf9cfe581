package pods

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/tacit-mesh/tacit/internal/manifests"
	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const manifest = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tacit.mesh/dataplane: enabled}, annotations: {tacit.mesh/skip-outbound-ports: "6379"}}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: u-web
  annotations: {tacit.mesh/skip-inbound-ports: "9000-9100,bad"}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d, uid: u-set}]
spec:
  nodeName: here
  serviceAccountName: web
  initContainers:
  - {name: sidecar, startupProbe: {grpc: {port: 9090}}}
  containers:
  - name: web
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {port: http}}
    livenessProbe: {tcpSocket: {port: 8080, host: 198.18.0.1}}
    startupProbe: {httpGet: {port: 1234, host: elsewhere.example}}
    lifecycle: {preStop: {httpGet: {port: 8081}}, postStart: {tcpSocket: {port: unnamed}}}
  - {name: none, livenessProbe: {exec: {command: ["true"]}}}
status:
  podIP: 198.18.0.1
  podIPs: [{ip: 198.18.0.1}, {ip: "fd00:7ac1::1"}]
  initContainerStatuses: [{name: sidecar, image: proxy:1, imageID: "proxy@sha256:12", containerID: "containerd://a"}]
  containerStatuses: [{name: web, image: web:2, imageID: ""}]
---
apiVersion: v1
kind: Pod
metadata: {name: out, namespace: shop, labels: {tacit.mesh/dataplane: disabled}}
spec: {nodeName: here, containers: []}
status: {podIPs: [{ip: 198.18.0.2}], containerStatuses: [{name: a, image: i, imageID: ""}]}
---
apiVersion: v1
kind: Pod
metadata: {name: in, labels: {tacit.mesh/dataplane: enabled}}
spec: {nodeName: here, containers: []}
status: {podIPs: [{ip: 198.18.0.3}]}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: shop}
spec: {nodeName: there, containers: []}
status: {podIPs: [{ip: 198.18.0.4}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop}
spec: {nodeName: here, hostNetwork: true, containers: []}
status: {podIPs: [{ip: 198.18.0.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop}
spec: {nodeName: here, containers: []}
status: {phase: Succeeded, podIPs: [{ip: 198.18.0.6}]}
---
apiVersion: v1
kind: Pod
metadata: {name: new, namespace: shop}
spec: {nodeName: here, containers: []}
---
apiVersion: v1
kind: Service
metadata: {name: somebody-elses-business}
`

func TestManifests(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pods.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &Manifests{Dir: dir, NetNSDir: "/run/netns", Node: "here", TrustDomain: "td", Skips: model.SkipSettings{Mode: model.SkipsAny}, Log: zaptest.NewLogger(t)}
	updates := make(chan []Pod, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx, func(p []Pod) { updates <- p }) }()
	defer func() { cancel(); <-done }()

	pod := func(namespace, name, uid, account string, capture bool, skips model.Skips, addrs ...string) Pod {
		p := Pod{Pod: handoff.Pod{UID: manifests.PodUID(uid, namespace, name), Name: name, Namespace: namespace, ServiceAccount: account, TrustDomain: "td"},
			NetNS: "/run/netns/" + namespace + "_" + name, Capture: capture, Skips: skips}
		p.RuntimeUID = p.UID
		for _, a := range addrs {
			p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
		}
		return p
	}
	redis := model.PortSet{{First: 6379, Last: 6379}}
	want := []Pod{
		pod("default", "in", "", "default", true, model.Skips{}, "198.18.0.3"),
		pod("shop", "out", "", "default", false, model.Skips{Outbound: redis}, "198.18.0.2"),
		pod("shop", "web", "u-web", "web", true, model.Skips{Outbound: redis}, "198.18.0.1", "fd00:7ac1::1"),
	}
	want[2].Faults = []string{`pod annotation tacit.mesh/skip-inbound-ports: port list "9000-9100,bad": "bad" is not a port (1-65535) or a range FIRST-LAST`}
	want[2].Probes = model.PortSet{{First: 8080, Last: 8080}, {First: 8081, Last: 8081}, {First: 9090, Last: 9090}}
	want[2].Composition = model.Composition{
		Containers: []model.Container{
			{Name: "sidecar", Init: true, Image: "proxy:1", ImageID: "proxy@sha256:12", Started: true}, {Name: "web", Image: "web:2"},
		},
		Owners: []model.Owner{{Kind: "ReplicaSet", Name: "web-5d", UID: "u-set"}},
	}
	want[0].Labels = map[string]string{"tacit.mesh/dataplane": "enabled"}
	want[1].Labels = map[string]string{"tacit.mesh/dataplane": "disabled"}
	next := func() []Pod {
		select {
		case p := <-updates:
			return p
		case <-time.After(10 * time.Second):
			t.Fatal("no update")
			return nil
		}
	}
	equal := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, next(), equal); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got := next(); len(got) > 0 {
		t.Errorf("without a manifest: %v", got)
	}
}
