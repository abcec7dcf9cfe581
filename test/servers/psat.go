package servers

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// What SPIRE's agent is in a cluster: a pod of an account, on a node.
const (
	cluster       = "test"
	agentNode     = "node1"
	agentAccount  = "spire-agent" // also its namespace's name, and its pod's
	agentAudience = "spire-server"
)

// judgesNodes is how the server knows nodes.
func (s *SPIRE) judgesNodes() string {
	if s.Kubernetes == nil {
		return joinToken
	}
	return fmt.Sprintf(`NodeAttestor "k8s_psat" { plugin_data { clusters = { %q = {
		service_account_allow_list = [%q]
		audience = [%q]
		kube_config_file = %q
	} } } }`, cluster, agentAccount+":"+agentAccount, agentAudience, s.Kubernetes.Kubeconfig)
}

// provesNode is how the agent shows which node it is on.
func (s *SPIRE) provesNode() string {
	if s.Kubernetes == nil {
		return joinToken
	}
	return fmt.Sprintf(`NodeAttestor "k8s_psat" { plugin_data { cluster = %q, token_path = %q } }`, cluster, s.path("token"))
}

const joinToken = `NodeAttestor "join_token" { plugin_data {} }`

// createAgentPod makes the agent's pod known to the API, and writes the token
// that the kubelet would give it.
func (s *SPIRE) createAgentPod() {
	s.t.Helper()
	client, err := kubernetes.NewForConfig(s.Kubernetes.Config)
	s.must(err)
	named := metav1.ObjectMeta{Name: agentAccount}
	api := client.CoreV1()
	_, err = api.Nodes().Create(s.t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: agentNode}}, metav1.CreateOptions{})
	s.must(err)
	_, err = api.Namespaces().Create(s.t.Context(), &corev1.Namespace{ObjectMeta: named}, metav1.CreateOptions{})
	s.must(err)
	_, err = api.ServiceAccounts(agentAccount).Create(s.t.Context(), &corev1.ServiceAccount{ObjectMeta: named}, metav1.CreateOptions{})
	s.must(err)
	_, err = api.Pods(agentAccount).Create(s.t.Context(), &corev1.Pod{ObjectMeta: named, Spec: corev1.PodSpec{
		NodeName: agentNode, ServiceAccountName: agentAccount, Containers: []corev1.Container{{Name: agentAccount, Image: "none"}},
	}}, metav1.CreateOptions{})
	s.must(err)
	token, err := PodToken(s.t.Context(), client, agentAccount, agentAccount, agentAudience, agentAccount)
	s.must(err)
	s.write("token", token)
}
