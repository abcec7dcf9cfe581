package kubetest

import (
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/internal/kube/nodeapi"
)

// NodeAPI is what an agent uses of a fake.
type NodeAPI struct {
	*fake.Clientset
	Own *Bypasses // nil for none
}

// Pods implements [nodeapi.Client].
func (f NodeAPI) Pods(namespace string) nodeapi.Pods { return f.CoreV1().Pods(namespace) }

// Nodes implements [nodeapi.Client].
func (f NodeAPI) Nodes() nodeapi.Nodes { return f.CoreV1().Nodes() }

// Namespaces implements [nodeapi.Client].
func (f NodeAPI) Namespaces() nodeapi.Follow[*corev1.NamespaceList] { return f.CoreV1().Namespaces() }

// RuntimeClasses implements [nodeapi.Client].
func (f NodeAPI) RuntimeClasses() nodeapi.Follow[*nodev1.RuntimeClassList] {
	return f.NodeV1().RuntimeClasses()
}

// Bypasses implements [nodeapi.Client].
func (f NodeAPI) Bypasses() nodeapi.Follow[*bypass.List] {
	if f.Own == nil {
		return &Bypasses{}
	}
	return f.Own
}

// Events implements [nodeapi.Client].
func (f NodeAPI) Events(namespace string) nodeapi.Events { return f.CoreV1().Events(namespace) }

// Tokens implements [nodeapi.Client].
func (f NodeAPI) Tokens(namespace string) nodeapi.Tokens {
	return f.CoreV1().ServiceAccounts(namespace)
}
