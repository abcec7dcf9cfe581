package kube

import (
	"fmt"
	"strings"
	"testing"
)

// The cluster itself, without Tacit: pods of both nodes reach each other in
// both families, by address, by service and by name.
func TestCluster(t *testing.T) {
	e := use(t)
	e.newNamespace("smoke", nil)
	image, err := e.AppImage(e.ctx)
	e.must(err)
	var text strings.Builder
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	if len(nodes) < 2 {
		t.Fatalf("nodes %v, want 2 at least", nodes)
	}
	for i, node := range nodes[:2] {
		fmt.Fprintf(&text, `
apiVersion: v1
kind: Pod
metadata: {name: pod%[1]d, namespace: smoke, labels: {app: pod%[1]d}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 1
  containers:
  - {name: app, image: %[3]q, args: [serve], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: service%[1]d, namespace: smoke}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: pod%[1]d}
  ports: [{port: 80, targetPort: 8080}]
---
`, i, node, image)
	}
	e.must(e.Apply(e.ctx, text.String()))
	addresses := make([][]string, 2)
	for i := range addresses {
		e.must(e.AwaitPod(e.ctx, "smoke", fmt.Sprintf("pod%d", i)))
		pod, err := e.PodAddresses(e.ctx, "smoke", fmt.Sprintf("pod%d", i))
		e.must(err)
		name := fmt.Sprintf("service%d", i)
		service, err := e.ServiceAddresses(e.ctx, "smoke", name)
		e.must(err)
		if len(pod) != 2 || len(service) != 2 {
			t.Fatalf("pod %d has addresses %v, its service %v: want two each", i, pod, service)
		}
		addresses[i] = append(urls(8080, pod...), urls(80, append(service, name, name+".smoke.svc.cluster.local")...)...)
	}
	for from := range addresses {
		for to := range addresses {
			for _, url := range addresses[to] {
				want := fmt.Sprintf("pod%d ", to)
				e.eventually(fmt.Sprintf("from pod%d to %s", from, url), func() error { // kube-proxy may be behind
					out, err := e.Exec(e.ctx, "smoke", fmt.Sprintf("pod%d", from), "/app", "get", url)
					if err == nil && !strings.HasPrefix(out, want) {
						err = fmt.Errorf("%q, want an answer from %s", out, want)
					}
					return err
				})
			}
		}
	}
}

func urls(port int, hosts ...string) []string {
	var out []string
	for _, host := range hosts {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		out = append(out, fmt.Sprintf("http://%s:%d/", host, port))
	}
	return out
}
