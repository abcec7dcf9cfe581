// Package istio tests how proxies get on with Istio's control plane: the
// clients of xDS and of certificates with a real istiod over a real API
// server. What does not belong here: what they do with bad answers, which no
// istiod gives (xds/client, identity/caclient).
package istio

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/test/kube"
	"github.com/tacit-mesh/tacit/test/servers"
)

func TestMain(m *testing.M) {
	// client-go keeps idle connections to the API server for later.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*ClientConn).readLoop"))
}

const (
	// The account that istiod trusts where it is installed for ambient mode.
	system  = "istio-system"
	account = "ztunnel"
	// patience bounds each wait, on a busy machine too.
	patience = 90 * time.Second
)

// mesh is a cluster's objects and the istiod that reads them.
type mesh struct {
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
apiVersion: v1
kind: Service
metadata: {name: server, namespace: mesh}
spec: {clusterIP: 10.96.7.1, selector: {app: server}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: gone, namespace: mesh}
spec: {clusterIP: 10.96.7.2, selector: {app: gone}, ports: [{port: 80, targetPort: 8080}]}`

// start runs both, with a proxy's pod on each of two nodes, a client on node a
// and a server on node b.
func start(t *testing.T) *mesh {
	t.Helper()
	kubernetes := servers.StartKubernetes(t, "10.96.0.0/16")
	m := &mesh{t: t, dir: t.TempDir()}
	var err error
	m.cluster, err = kube.Connect(kubernetes.Config)
	m.must(err)
	kinds, err := os.ReadFile("../../deploy/crds.yaml")
	m.must(err)
	m.apply(string(kinds))
	m.apply(objects)
	for _, node := range []string{"a", "b"} {
		m.createPod(system, account+"-"+node, account, node, "192.0.2.1")
	}
	m.createPod("mesh", "client", "client", "a", "10.244.1.10")
	m.createPod("mesh", "server", "server", "b", "10.244.2.10")
	m.createPod("mesh", "gone", "gone", "b", "10.244.2.11")
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

// createPod makes a captured pod that is running and ready, as nobody else
// does here, and its account.
func (m *mesh) createPod(namespace, name, serviceAccount, node, address string) {
	m.t.Helper()
	client := m.cluster.Client.CoreV1()
	_, err := client.ServiceAccounts(namespace).Create(m.context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: serviceAccount}}, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		m.must(err)
	}
	pod, err := client.Pods(namespace).Create(m.context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}, Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"}},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: serviceAccount, HostNetwork: namespace == system,
			Containers: []corev1.Container{{Name: "app", Image: "none", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}},
	}, metav1.CreateOptions{})
	m.must(err)
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}},
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
	client := m.cluster.Client.CoreV1()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	if pod != "" {
		bound, err := client.Pods(namespace).Get(m.context(), pod, metav1.GetOptions{})
		m.must(err)
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod, UID: bound.UID}
	}
	answer, err := client.ServiceAccounts(namespace).CreateToken(m.context(), serviceAccount, request, metav1.CreateOptions{})
	m.must(err)
	return answer.Status.Token
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
