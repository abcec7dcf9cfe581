package pods

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"

	"github.com/tacit-mesh/tacit/internal/manifests"
	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Manifests is the source of a node without Kubernetes: a directory of
// Kubernetes manifests, and a directory with each pod's network namespace as
// a file NAMESPACE_NAME.
type Manifests struct {
	Dir         string
	NetNSDir    string
	Node        string
	TrustDomain string
	Skips       model.SkipSettings
	Log         *zap.Logger
}

// dataPlane, on a namespace or a pod, opts in ("enabled") or, on a pod, out
// ("disabled").
const dataPlane = "tacit.mesh/dataplane"

// Run implements [Source].
func (m *Manifests) Run(ctx context.Context, update func([]Pod)) error {
	return m.dir().Run(ctx, func(objects []manifests.Object, errs []error) {
		for _, err := range errs {
			m.Log.Error("manifest; what was read of the object before holds on", zap.Error(err))
		}
		update(m.pods(objects))
	})
}

func (m *Manifests) dir() *manifests.Dir {
	return &manifests.Dir{
		Path: m.Dir,
		Kinds: []manifests.Kind{
			{APIVersions: []string{"v1"}, Kind: "Pod", Decode: manifests.Strict[corev1.Pod]},
			{APIVersions: []string{"v1"}, Kind: "Namespace", Cluster: true, Decode: manifests.Strict[corev1.Namespace]},
		},
		Ignore: func(string, string) bool { return true }, // tacitd's business
	}
}

func (m *Manifests) pods(objects []manifests.Object) []Pod {
	namespaces := map[string]*corev1.Namespace{}
	for _, o := range objects {
		if n, ok := o.Value.(*corev1.Namespace); ok {
			namespaces[o.Name] = n
		}
	}
	var pods []Pod
	for _, o := range objects {
		if p, ok := o.Value.(*corev1.Pod); ok && m.isHere(p) {
			namespace := namespaces[o.Namespace]
			if namespace == nil {
				namespace = &corev1.Namespace{}
			}
			pods = append(pods, m.pod(o, p, namespace))
		}
	}
	return pods
}

// isHere reports whether the pod runs on this node and in a network namespace
// of its own.
func (m *Manifests) isHere(p *corev1.Pod) bool {
	return p.Spec.NodeName == m.Node && !p.Spec.HostNetwork && len(addresses(p)) > 0 &&
		p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func (m *Manifests) pod(o manifests.Object, p *corev1.Pod, namespace *corev1.Namespace) Pod {
	skips, errs := model.ReadSkips(p.Annotations, namespace.Annotations, m.Skips)
	if len(errs) > 0 {
		m.Log.Warn("skips that are not in force", zap.String("pod", o.Namespace+"/"+o.Name), zap.Error(errors.Join(errs...)))
	}
	return Pod{
		Pod: handoff.Pod{
			UID:            manifests.PodUID(string(p.UID), o.Namespace, o.Name),
			Name:           o.Name,
			Namespace:      o.Namespace,
			ServiceAccount: cmp.Or(p.Spec.ServiceAccountName, "default"),
			TrustDomain:    m.TrustDomain,
			Addresses:      addresses(p),
		},
		NetNS:   filepath.Join(m.NetNSDir, o.Namespace+"_"+o.Name),
		Capture: cmp.Or(p.Labels[dataPlane], namespace.Labels[dataPlane]) == "enabled",
		Skips:   skips,
	}
}

func addresses(p *corev1.Pod) []netip.Addr {
	var all []netip.Addr
	for _, ip := range append([]corev1.PodIP{{IP: p.Status.PodIP}}, p.Status.PodIPs...) {
		if a, err := netip.ParseAddr(ip.IP); err == nil && !slices.Contains(all, a.Unmap()) {
			all = append(all, a.Unmap())
		}
	}
	return all
}
