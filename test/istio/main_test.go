// Package istio tests how proxies get on with Istio's control plane, a real
// istiod over a real API server: the clients of xDS and of certificates, and
// whole nodes whose pods come as from Istio's CNI agent. What does not belong
// here: what clients do with bad answers, which no istiod gives (xds/client,
// identity/caclient).
package istio

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/kube"
	"github.com/tacit-mesh/tacit/test/servers"
	"github.com/tacit-mesh/tacit/test/world"
)

func TestMain(m *testing.M) {
	world.Enter(func() int {
		if code := m.Run(); code != 0 {
			return code
		}
		// client-go keeps idle connections to the API server for later.
		if err := goleak.Find(goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
			goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*ClientConn).readLoop")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}, "./cmd/tacit-agent", "./cmd/tacit-proxy")
}

const (
	// The account that istiod trusts where it is installed for ambient mode.
	system  = "istio-system"
	account = "ztunnel"
	// patience bounds each wait, on a busy machine too.
	patience = 90 * time.Second
)

// mesh is a cluster's objects, the istiod that reads them, and a world of the
// pods among them.
type mesh struct {
	*e2e.Mesh
	t       *testing.T
	dir     string
	cluster *kube.Cluster
	istiod  *servers.Istiod
}

// objects are the mesh to begin with, pods apart.
const objects = `
{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: mesh}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: outside}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: mesh}
spec: {clusterIP: 10.96.7.1, selector: {app: server}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: gone, namespace: mesh}
spec: {clusterIP: 10.96.7.2, selector: {app: gone}, ports: [{port: 80, targetPort: 8080}]}`

// foreign is a pod of a third node.
const foreign = `
apiVersion: v1
kind: Pod
metadata: {name: foreign, namespace: mesh, labels: {app: foreign}}
spec:
  nodeName: c
  serviceAccountName: foreign
  containers: [{name: app, image: none}]
status:
  podIPs: [{ip: "198.18.3.10"}, {ip: "fd00:7ac1:3::10"}]`

// start makes the world and runs both, with a proxy's pod on each of the
// nodes. No program of ours runs yet.
func start(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{
		Mesh: e2e.Build(t, world.Config{ZDS: true, ProxyArgs: []string{"--istio-admin=" + ztunnelAdmin}, Manifests: "../e2e/testdata"}, foreign), t: t, dir: t.TempDir(),
	}
	// They run beside the nodes, in the tests' own network namespace.
	lo, err := netlink.LinkByName("lo")
	m.must(err)
	m.must(netlink.LinkSetUp(lo))
	kubernetes := servers.StartKubernetes(t, "10.96.0.0/16")
	m.cluster, err = kube.Connect(kubernetes.Config)
	m.must(err)
	kinds, err := os.ReadFile("../../deploy/crds.yaml")
	m.must(err)
	m.apply(string(kinds))
	m.apply(entries)
	m.apply(objects)
	for _, node := range m.Nodes() {
		m.createPod(system, account+"-"+node.Name, account, node.Name, node.Addresses[0])
	}
	for _, pod := range m.Pods() {
		namespace, name, _ := strings.Cut(pod.Key, "/")
		m.createPod(namespace, name, pod.ServiceAccount(), pod.Node.Name, pod.Addresses...)
	}
	m.createPod("mesh", "gone", "gone", "b", netip.MustParseAddr("198.18.2.99"))
	m.istiod = servers.StartIstiod(t, servers.IstiodConfig{Kubernetes: kubernetes, ProxyAccount: system + "/" + account})
	m.must(kube.Await(m.context(), m.cluster, system, "istio-ca-root-cert", func(roots *corev1.ConfigMap) error {
		return os.WriteFile(m.roots(), []byte(roots.Data["root-cert.pem"]), 0o600)
	}))
	return m
}

// roots is the file of istiod's.
func (m *mesh) roots() string { return filepath.Join(m.dir, "root-cert.pem") }

func (m *mesh) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *mesh) context() context.Context {
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	m.t.Cleanup(cancel)
	return ctx
}

func (m *mesh) apply(text string) {
	m.t.Helper()
	m.must(m.cluster.Apply(m.context(), text))
}

// createPod makes a pod that is running and ready, as nobody else does here,
// and its account. Those of the mesh are captured.
func (m *mesh) createPod(namespace, name, serviceAccount, node string, addresses ...netip.Addr) {
	m.t.Helper()
	client := m.cluster.Client.CoreV1()
	_, err := client.ServiceAccounts(namespace).Create(m.context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: serviceAccount}}, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		m.must(err)
	}
	// What other meshes say of ports that go by them is not for Istio's ambient mode.
	annotations := map[string]string{
		"config.linkerd.io/skip-inbound-ports": "8080,9090", "config.linkerd.io/skip-outbound-ports": "8080,9090,80",
		"traffic.sidecar.istio.io/excludeInboundPorts": "8080,9090", "traffic.sidecar.istio.io/excludeOutboundPorts": "8080,9090,80",
		"tacit.mesh/skip-inbound-ports": "8080,9090",
	}
	if namespace == "mesh" {
		annotations["ambient.istio.io/redirection"] = "enabled"
	}
	var ips []corev1.PodIP
	for _, a := range addresses {
		ips = append(ips, corev1.PodIP{IP: a.String()})
	}
	pod, err := client.Pods(namespace).Create(m.context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}, Annotations: annotations},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: serviceAccount, HostNetwork: namespace == system,
			Containers: []corev1.Container{{Name: "app", Image: "none", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}},
	}, metav1.CreateOptions{})
	m.must(err)
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ips[0].IP, PodIPs: ips,
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}},
	}
	_, err = client.Pods(namespace).UpdateStatus(m.context(), pod, metav1.UpdateOptions{})
	m.must(err)
}

// deletePod takes a pod away at once: there is no kubelet to end it.
func (m *mesh) deletePod(namespace, name string) {
	m.t.Helper()
	m.must(m.cluster.Client.CoreV1().Pods(namespace).Delete(m.context(), name, *metav1.NewDeleteOptions(0)))
}

// token is a service account's for an audience, bound to a pod unless that is
// empty.
func (m *mesh) token(namespace, serviceAccount, audience, pod string) string {
	m.t.Helper()
	token, err := servers.PodToken(m.context(), m.cluster.Client, namespace, serviceAccount, audience, pod)
	m.must(err)
	return token
}

// proxyToken is what the kubelet gives the proxy of a node.
func (m *mesh) proxyToken(node string) string {
	m.t.Helper()
	return m.token(system, account, "istio-ca", account+"-"+node)
}

// tokenFile writes a file that holds a token.
func (m *mesh) tokenFile(name, token string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	m.must(os.WriteFile(path, []byte(token+"\n"), 0o600))
	return path
}
