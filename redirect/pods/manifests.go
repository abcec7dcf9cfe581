package pods

import (
	"context"
	"path/filepath"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"

	"github.com/tacit-mesh/tacit/internal/manifests"
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
	DNS         DNSSettings
	Log         *zap.Logger
}

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
	reader := Reader{Node: m.Node, TrustDomain: m.TrustDomain, Skips: m.Skips, DNS: m.DNS}
	var pods []Pod
	for _, o := range objects {
		p, ok := o.Value.(*corev1.Pod)
		if !ok || !reader.Here(p) || len(addresses(p)) == 0 {
			continue
		}
		namespace := namespaces[o.Namespace]
		if namespace == nil {
			namespace = &corev1.Namespace{}
		}
		named := *p // a manifest may leave its namespace out
		named.Namespace = o.Namespace
		pod := reader.Read(&named, namespace)
		pod.NetNS = filepath.Join(m.NetNSDir, o.Namespace+"_"+o.Name)
		pods = append(pods, pod)
	}
	return pods
}
