package bench

import (
	"context"
	"fmt"
	"strconv"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tacit-mesh/tacit/perf/load"
)

// Label is on everything that is made here.
const Label = "tacit.mesh/bench"

// The labels and annotations of pods that are in the mesh.
const (
	dataplane    = "tacit.mesh/dataplane"
	redirection  = "tacit.mesh/redirection"
	skipInbound  = "tacit.mesh/skip-inbound-ports"
	skipOutbound = "tacit.mesh/skip-outbound-ports"
	enabled      = "enabled"
)

// container is the name of the one in each pod.
const container = "load"

// end is how long pods live at most: longer than any run, for one that was
// killed and could not clean up.
const end = 6 * 60 * 60 // seconds

// nodes are where the clients and the servers on the other side are.
type nodes struct{ client, server string }

// pod is one that is made.
type pod struct {
	name   string
	far    bool // on the servers' node
	meshed bool
	server bool
}

// The pods. Clients and servers share a ServiceAccount: what is measured is that
// they are told apart, not by what.
const (
	plainClient, plainServer, plainNear    = "plain-client", "plain-server", "plain-near-server"
	meshedClient, meshedServer, meshedNear = "meshed-client", "meshed-server", "meshed-near-server"
	meshedHTTP, meshedNeighbour            = "meshed-http-server", "meshed-neighbour"
)

var pods = []pod{
	{name: plainClient}, {name: plainServer, far: true, server: true}, {name: plainNear, server: true},
	{name: meshedClient, meshed: true}, {name: meshedServer, far: true, meshed: true, server: true}, {name: meshedNear, meshed: true, server: true},
	{name: meshedHTTP, far: true, meshed: true, server: true}, {name: meshedNeighbour, meshed: true},
}

// object is the pod's own: as restricted as the strictest namespaces ask for.
func (p pod) object(image string, on nodes) *core.Pod {
	no, yes, grace, deadline := false, true, int64(1), int64(end)
	node := on.client
	if p.far {
		node = on.server
	}
	o := &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: p.name, Labels: map[string]string{Label: "true", "app": p.name}, Annotations: map[string]string{}},
		Spec: core.PodSpec{
			RestartPolicy: core.RestartPolicyNever, TerminationGracePeriodSeconds: &grace, ActiveDeadlineSeconds: &deadline,
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
			SecurityContext: &core.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &core.SeccompProfile{Type: core.SeccompProfileTypeRuntimeDefault}},
			Affinity: &core.Affinity{NodeAffinity: &core.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &core.NodeSelector{
				NodeSelectorTerms: []core.NodeSelectorTerm{{MatchFields: []core.NodeSelectorRequirement{
					{Key: "metadata.name", Operator: core.NodeSelectorOpIn, Values: []string{node}}}}}}}},
			Containers: []core.Container{{
				// Clients serve as well, and are not asked: that keeps them alive.
				Name: container, Image: image, Args: []string{"bench", "serve"},
				SecurityContext: &core.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
					Capabilities: &core.Capabilities{Drop: []core.Capability{"ALL"}}},
			}},
		},
	}
	if p.meshed {
		o.Labels[dataplane] = enabled
		o.Annotations[skipInbound], o.Annotations[skipOutbound] = strconv.Itoa(load.SkippedPort), strconv.Itoa(load.SkippedPort)
	}
	return o
}

var security = schema.GroupVersion{Group: "security.istio.io", Version: "v1"}

// policies are as in production: an identity is asked for, the callers must be
// named, and of one server each request is decided upon.
func policies(namespace string) map[string][]*unstructured.Unstructured {
	policy := func(kind, name string, spec map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": security.String(), "kind": kind, "spec": spec,
			"metadata": map[string]any{"name": name, "namespace": namespace, "labels": map[string]any{Label: "true"}},
		}}
	}
	app := func(name string) map[string]any { return map[string]any{"matchLabels": map[string]any{"app": name}} }
	from := []any{map[string]any{"source": map[string]any{"namespaces": []any{namespace}}}}
	allow := func(name string, rule map[string]any) *unstructured.Unstructured {
		return policy("AuthorizationPolicy", name, map[string]any{"selector": app(name), "action": "ALLOW", "rules": []any{rule}})
	}
	strict := func(name string) *unstructured.Unstructured {
		return policy("PeerAuthentication", name, map[string]any{"selector": app(name), "mtls": map[string]any{"mode": "STRICT"}})
	}
	callers := map[string]any{"from": from}
	requests := map[string]any{"from": from, "to": []any{map[string]any{"operation": map[string]any{"methods": []any{"GET"}}}}}
	return map[string][]*unstructured.Unstructured{
		"authorizationpolicies": {allow(meshedServer, callers), allow(meshedNear, callers), allow(meshedHTTP, requests)},
		"peerauthentications":   {strict(meshedServer), strict(meshedNear), strict(meshedHTTP)},
	}
}

// create makes everything in a new namespace and returns that one's name, also
// if it fails later on.
func (b *bench) create(ctx context.Context, image string, on nodes) (namespace string, err error) {
	made, err := b.Client.CoreV1().Namespaces().Create(ctx, &core.Namespace{ObjectMeta: meta.ObjectMeta{
		GenerateName: "tacit-bench-", Labels: map[string]string{Label: "true"}}}, meta.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("make a namespace: %w", err)
	}
	namespace = made.Name
	for resource, all := range policies(namespace) {
		for _, policy := range all {
			if _, err := b.Dynamic.Resource(security.WithResource(resource)).Namespace(namespace).Create(ctx, policy, meta.CreateOptions{}); err != nil {
				return namespace, fmt.Errorf("make a policy: %w", err)
			}
		}
	}
	for _, p := range pods {
		if _, err := b.Client.CoreV1().Pods(namespace).Create(ctx, p.object(image, on), meta.CreateOptions{}); err != nil {
			return namespace, fmt.Errorf("make a pod: %w", err)
		}
	}
	return namespace, nil
}
