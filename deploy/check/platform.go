package check

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authorization "k8s.io/api/authorization/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/version"
)

// The oldest versions that Tacit is for: of Kubernetes as the chart says, of
// Linux by the socket options that the agent and the proxy use.
const (
	oldestKubernetes = "1.30"
	oldestKernel     = "5.10"
)

func (s *state) version(context.Context) {
	info, err := s.c.Client.Discovery().ServerVersion()
	if err != nil {
		s.unknown("Kubernetes", "API server", err)
		return
	}
	v, err := version.ParseGeneric(info.GitVersion)
	switch {
	case err != nil:
		s.unknown("Kubernetes", "API server", err)
	case v.LessThan(version.MustParseGeneric(oldestKubernetes)):
		s.add(Broken, "Kubernetes", "API server", info.GitVersion+" is too old", "upgrade to "+oldestKubernetes+" or later")
	default:
		s.add(Fine, "Kubernetes", "API server", info.GitVersion, "")
	}
}

// permissions are what tacit install itself takes.
func (s *state) permissions(ctx context.Context) {
	before := len(s.findings)
	for _, a := range []authorization.ResourceAttributes{
		{Verb: "create", Resource: "namespaces"}, {Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
		{Verb: "create", Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
		{Verb: "create", Group: "apps", Resource: "daemonsets", Namespace: s.c.Namespace},
		{Verb: "create", Resource: "pods", Subresource: "exec", Namespace: s.c.Namespace},
	} {
		review, err := s.c.Client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx,
			&authorization.SelfSubjectAccessReview{Spec: authorization.SelfSubjectAccessReviewSpec{ResourceAttributes: &a}}, meta.CreateOptions{})
		what := strings.Trim(a.Resource+"/"+a.Subresource, "/")
		if err != nil {
			s.unknown("Permissions", what, err)
			continue
		}
		if !review.Status.Allowed {
			s.add(Risky, "Permissions", what, "you may not "+a.Verb+" "+what, "have somebody install who may, such as a cluster-admin")
		}
	}
	s.fine(before, "Permissions", "you may install, and look into proxies")
}

func (s *state) nodesReady(context.Context) {
	before := len(s.findings)
	linux := 0
	for _, node := range s.nodes {
		info := node.Status.NodeInfo
		if os := node.Labels["kubernetes.io/os"]; os != "" && os != "linux" {
			continue
		}
		linux++
		if !hasCondition(node, core.NodeReady) {
			s.add(Risky, "Nodes", node.Name, "is not ready", "its pods are not captured, and it is not cleaned, until it is")
		}
		kernel, err := version.ParseGeneric(info.KernelVersion)
		if err == nil && kernel.LessThan(version.MustParseGeneric(oldestKernel)) {
			s.add(Broken, "Nodes", node.Name, "Linux "+info.KernelVersion+" is too old", "upgrade it to "+oldestKernel+" or later, or keep pods of the mesh away from it")
		}
		if runtime, _, _ := strings.Cut(info.ContainerRuntimeVersion, ":"); runtime != "containerd" && runtime != "cri-o" && runtime != "" {
			s.add(Risky, "Nodes", node.Name, "container runtime "+info.ContainerRuntimeVersion+" was never tried", "see whether a pod there is captured before you rely on it")
		}
	}
	s.fine(before, "Nodes", fmt.Sprintf("%d nodes with Linux are ready", linux))
}

func hasCondition(node core.Node, kind core.NodeConditionType) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c core.NodeCondition) bool {
		return c.Type == kind && c.Status == core.ConditionTrue
	})
}

// platform recognizes those that there is a preset for.
func (s *state) platform(context.Context) {
	if len(s.agents) > 0 || len(s.nodes) == 0 {
		return
	}
	node := s.nodes[0]
	preset := ""
	for label, name := range map[string]string{
		"eks.amazonaws.com/nodegroup": "eks", "cloud.google.com/gke-nodepool": "gke", "kubernetes.azure.com/cluster": "aks", "node.openshift.io/os_id": "openshift",
	} {
		if _, ok := node.Labels[label]; ok {
			preset = name
		}
	}
	if strings.Contains(node.Status.NodeInfo.KubeletVersion, "+k3s") {
		preset = "k3s"
	}
	if preset != "" {
		s.add(Risky, "Platform", node.Name, "looks like a node of "+preset+", where directories or admission differ", "tacit install --preset "+preset)
	}
}

var policyKinds = []string{"authorizationpolicies", "peerauthentications", "requestauthentications"}

// kinds are those of policies, whoever has installed them.
func (s *state) kinds(ctx context.Context) {
	crds := s.c.Dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	before := len(s.findings)
	for _, name := range policyKinds {
		_, err := crds.Get(ctx, name+".security.istio.io", meta.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) && len(s.agents) > 0:
			s.add(Risky, "Policies", name, "there is no such kind: policies of it cannot be written",
				"install it: kubectl create -f deploy/crds.yaml, or tacit upgrade --set crds.install=true")
		case err != nil && !apierrors.IsNotFound(err):
			s.unknown("Policies", name, err)
		}
	}
	s.fine(before, "Policies", "the kinds of security.istio.io are there, or will be installed")
}

// otherMeshes are those that capture the same pods.
func (s *state) otherMeshes(context.Context) {
	before := len(s.findings)
	for _, pod := range s.pods {
		ns := s.namespaces[pod.Namespace]
		if ns == nil || !optedIn(pod, ns) {
			continue
		}
		name := pod.Namespace + "/" + pod.Name
		mode := pod.Labels["istio.io/dataplane-mode"]
		if mode == "" {
			mode = ns.Labels["istio.io/dataplane-mode"]
		}
		switch {
		case mode == "ambient":
			s.add(Broken, "Other meshes", name, "Istio's ambient mode captures it, too", "take one of the labels istio.io/dataplane-mode and tacit.mesh/dataplane off")
		case pod.Annotations["sidecar.istio.io/status"] != "" || slices.ContainsFunc(containers(pod), func(c core.Container) bool {
			return c.Name == "istio-proxy" || c.Name == "linkerd-proxy"
		}):
			s.add(Risky, "Other meshes", name, "it has a sidecar: its traffic is encrypted twice, and policies of Tacit see the sidecar's",
				"take the injection off its namespace and restart it")
		}
	}
	s.fine(before, "Other meshes", "none captures a pod that is opted in")
}

func containers(pod core.Pod) []core.Container {
	return slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
}
