package pods

import (
	"context"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/tacit-mesh/tacit/internal/bypass"
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
	MaxBypass   time.Duration // of a bypass that is accepted
	Log         *zap.Logger
}

// Run implements [Source].
func (m *Manifests) Run(ctx context.Context, update func([]Pod)) error {
	latest := make(chan []manifests.Object, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return m.dir().Run(ctx, func(objects []manifests.Object, errs []error) {
			for _, err := range errs {
				m.Log.Error("manifest; what was read of the object before holds on", zap.Error(err))
			}
			select {
			case <-latest: // older ones
			default:
			}
			latest <- objects
		})
	})
	g.Go(func() error {
		var objects []manifests.Object
		var next <-chan time.Time
		for {
			select {
			case objects = <-latest:
			case <-next:
			case <-ctx.Done():
				return ctx.Err()
			}
			now := time.Now().Round(0)
			bypasses := m.bypasses(objects)
			update(m.pods(objects, bypasses, now))
			next = bypasses.Next(now)
		}
	})
	return g.Wait()
}

func (m *Manifests) bypasses(objects []manifests.Object) Bypasses {
	b := Bypasses{Limit: m.MaxBypass}
	for _, o := range objects {
		if one, ok := o.Value.(*bypass.Bypass); ok {
			named := *one // a manifest may leave its namespace out
			named.Namespace = o.Namespace
			b.All = append(b.All, &named)
		}
	}
	return b
}

func (m *Manifests) dir() *manifests.Dir {
	return &manifests.Dir{
		Path: m.Dir,
		Kinds: []manifests.Kind{
			{APIVersions: []string{"v1"}, Kind: "Pod", Decode: manifests.Strict[corev1.Pod]},
			{APIVersions: []string{"v1"}, Kind: "Namespace", Cluster: true, Decode: manifests.Strict[corev1.Namespace]},
			{APIVersions: []string{bypass.Version}, Kind: "Bypass", Decode: manifests.Strict[bypass.Bypass]},
		},
		Ignore: func(string, string) bool { return true }, // tacitd's business
	}
}

func (m *Manifests) pods(objects []manifests.Object, bypasses Bypasses, now time.Time) []Pod {
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
		bypasses.Apply(&pod, now)
		pod.NetNS = filepath.Join(m.NetNSDir, o.Namespace+"_"+o.Name)
		pods = append(pods, pod)
	}
	return pods
}
