package kube

import (
	"fmt"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Who has got hold of an agent's token can report pods of that agent's node as
// captured, and change nothing else of any pod or node. What nobody grants a
// program is refused with the rule that would.
func rights(e environment) {
	e.newNamespace("rights", nil)
	e.workload("rights", "web", nil, "")
	e.must(e.AwaitDeployment(e.ctx, "rights", "web"))
	names := e.podNames("rights", "app=web")
	here, there := names[0], names[1]
	if e.nodeOf("rights", here) == e.nodeOf("rights", there) {
		e.t.Fatal("both pods are on one node")
	}
	agent := e.asAgent(e.nodeOf("rights", here))
	patch := func(pod, text string) error {
		_, err := agent.CoreV1().Pods("rights").Patch(e.ctx, pod, types.MergePatchType, []byte(text), metav1.PatchOptions{}, "status")
		return err
	}
	const captured = `{"metadata": {"annotations": {"tacit.mesh/redirection": "enabled"}}}`
	e.must(patch(here, captured), patch(here, `{"metadata": {"annotations": {"tacit.mesh/redirection": null}}}`))
	for _, refused := range []struct{ pod, patch, reason string }{
		{there, captured, "only what is on its own node"},
		{here, `{"metadata": {"annotations": {"tacit.mesh/redirection": "disabled"}}}`, "is enabled or absent"},
		{here, `{"metadata": {"annotations": {"tacit.mesh/skip-inbound-ports": "1-65535"}}}`, "no annotation but"},
		{here, `{"metadata": {"labels": {"app": "another"}}}`, "no label"},
		{here, `{"metadata": {"labels": {"app": null}}}`, "no label"},
		{here, `{"metadata": {"finalizers": ["example.com/never"]}}`, "no finalizer"},
		{here, `{"status": {"podIPs": [{"ip": "10.244.9.9"}], "podIP": "10.244.9.9"}}`, "no status"},
		{here, `{"status": {"phase": "Failed"}}`, "no status"},
	} {
		if err := patch(refused.pod, refused.patch); err == nil || !strings.Contains(err.Error(), refused.reason) {
			e.t.Errorf("an agent changes %s by %s: %v, want it refused: %s", refused.pod, refused.patch, err, refused.reason)
		}
	}
	e.nodeRights(agent, e.nodeOf("rights", here))
	e.eachVerb()
}

// nodeRights shows what an agent can do to nodes: take its own taint off its own.
func (e environment) nodeRights(agent kubernetes.Interface, own string) {
	e.t.Helper()
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	other := nodes[0]
	if other == own {
		other = nodes[1]
	}
	for _, refused := range []struct{ node, patch, reason string }{
		{other, `{"metadata": {"annotations": {"tacit-test": "1"}}}`, "only what is on its own node"},
		{own, `{"metadata": {"annotations": {"tacit-test": "1"}}}`, "nothing of a node but its taint"},
		{own, `{"metadata": {"labels": {"tacit-test": "1"}}}`, "nothing of a node but its taint"},
		{own, `{"spec": {"unschedulable": true}}`, "nothing of a node but its taint"},
		{own, `{"spec": {"taints": [{"key": "tacit-test", "effect": "NoSchedule"}]}}`, "no taint but"},
		{own, `{"spec": {"taints": [{"key": "tacit.mesh/agent-not-ready", "effect": "NoExecute"}]}}`, "no taint but"},
	} {
		_, err := agent.CoreV1().Nodes().Patch(e.ctx, refused.node, types.MergePatchType, []byte(refused.patch), metav1.PatchOptions{})
		if err == nil || !strings.Contains(err.Error(), refused.reason) {
			e.t.Errorf("an agent changes %s by %s: %v, want it refused: %s", refused.node, refused.patch, err, refused.reason)
		}
	}
}

// startupTaint is what a node may be made with, for the agent to take off.
const startupTaint = "tacit.mesh/agent-not-ready"

// taintNodes makes all nodes such as no pod may come to before the agent; not
// another's, which may have taints already.
func (e environment) taintNodes() {
	e.t.Helper()
	if !e.Ours() {
		return
	}
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	for _, node := range nodes {
		e.must(e.Patch(e.ctx, "v1", "Node", "", node, fmt.Sprintf("spec: {taints: [{key: %s, effect: NoSchedule}]}", startupTaint)))
	}
}

// awaitNoTaint waits until agents have taken it off.
func (e environment) awaitNoTaint() {
	e.t.Helper()
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	for _, name := range nodes {
		e.must(Await(e.ctx, e.Cluster, "", name, func(node *corev1.Node) error {
			for _, taint := range node.Spec.Taints {
				if taint.Key == startupTaint {
					return fmt.Errorf("it has the taint %s", taint.ToString())
				}
			}
			return nil
		}))
	}
}

// asAgent is a client with a token as the agent of a node has one.
func (e environment) asAgent(node string) kubernetes.Interface {
	e.t.Helper()
	const account = "tacit-agent"
	all, err := e.Client.CoreV1().Pods(Namespace).List(e.ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + account, FieldSelector: "spec.nodeName=" + node})
	e.must(err)
	if len(all.Items) == 0 {
		e.t.Fatal("no agent on ", node)
	}
	token, err := e.Client.CoreV1().ServiceAccounts(Namespace).CreateToken(e.ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: all.Items[0].Name}},
	}, metav1.CreateOptions{})
	e.must(err)
	config := rest.AnonymousClientConfig(e.Config)
	config.BearerToken = token.Status.Token
	client, err := kubernetes.NewForConfig(config)
	e.must(err)
	return client
}

// What lies on a node for the CNI plugin lets its finder read who is in the
// mesh, and no more.
func pluginRights(e environment) {
	if !e.Ours() {
		e.t.Skip("reads files of nodes: only on a cluster made here")
	}
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	text, err := e.Node(nodes[0]).Run(e.ctx, "cat", "/opt/cni/bin/.tacit-cni/kubeconfig")
	e.must(err)
	config, err := clientcmd.RESTConfigFromKubeConfig([]byte(text))
	e.must(err)
	config.Host = e.Config.Host // the service's address leads there from nodes alone
	client, err := kubernetes.NewForConfig(config)
	e.must(err)
	for _, tt := range []struct {
		attributes authorizationv1.ResourceAttributes
		allowed    bool
	}{
		{authorizationv1.ResourceAttributes{Verb: "get", Resource: "pods", Namespace: "default"}, true},
		{authorizationv1.ResourceAttributes{Verb: "get", Resource: "namespaces"}, true},
		{authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods"}, false},
		{authorizationv1.ResourceAttributes{Verb: "patch", Resource: "pods", Subresource: "status", Namespace: "default"}, false},
		{authorizationv1.ResourceAttributes{Verb: "get", Resource: "secrets", Namespace: Namespace}, false},
		{authorizationv1.ResourceAttributes{Verb: "create", Resource: "serviceaccounts", Subresource: "token", Namespace: Namespace}, false},
	} {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &tt.attributes}}
		answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(e.ctx, review, metav1.CreateOptions{})
		e.must(err)
		if answer.Status.Allowed != tt.allowed {
			e.t.Errorf("the plugin may %+v: %v, want %v", tt.attributes, answer.Status.Allowed, tt.allowed)
		}
	}
}
