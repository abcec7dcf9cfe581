package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/identity/nodeauth"
	"github.com/tacit-mesh/tacit/identity/person"
	"github.com/tacit-mesh/tacit/internal/kube"
	"github.com/tacit-mesh/tacit/internal/kube/access"
	"github.com/tacit-mesh/tacit/xds/build"
	clusterobjects "github.com/tacit-mesh/tacit/xds/source/kube"
)

// The Lease in tacitd's namespace.
const lease = "tacitd"

const (
	// While the API server does not answer at the start.
	openAgain = 5 * time.Second
	// Requests for authentication, beside those of everything else.
	reviewsPerSecond = 200
)

// clusterOptions are what the flags say of a cluster.
type clusterOptions struct {
	kubernetes             bool
	kubeconfig, namespace  string
	proxyAccount, audience string
	noStatus               bool
	// clients are for tests; nil makes them.
	clients *clients
}

func (o *clusterOptions) clusterFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.kubernetes, "kubernetes", false, "take the objects from the Kubernetes API, and tokens and the CA's key with them")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` that says how to reach the API; without it, as the pod that this runs in")
	f.StringVar(&o.namespace, "namespace", cmp.Or(os.Getenv("POD_NAMESPACE"), build.DefaultRootNamespace), "`namespace` of tacitd, its Secret and the proxies; POD_NAMESPACE in the environment changes the default")
	f.StringVar(&o.proxyAccount, "proxy-service-account", "tacit-proxy", "`name` of the ServiceAccount that proxies run as")
	f.StringVar(&o.audience, "audience", "tacitd", "`audience` that proxies' tokens are for")
	f.BoolVar(&o.noStatus, "no-status", false, "write no status to policies, as where another control plane owns them")
}

// clients reach the API.
type clients struct {
	objects kubernetes.Interface
	dynamic dynamic.Interface
	reviews kubernetes.Interface // with a queue of its own
	// authority is over HTTP/1, where a question that is given up takes its
	// connection along. Over HTTP/2 the next ones would go on waiting for one
	// that has silently died, for 45 seconds, and meanwhile a replica would not
	// hear that another root signs.
	authority kubernetes.Interface
}

func newClients(kubeconfig string) (*clients, error) {
	config, err := access.Config(kubeconfig)
	if err != nil {
		return nil, err
	}
	reviews := rest.CopyConfig(config)
	reviews.QPS, reviews.Burst = reviewsPerSecond, 2*reviewsPerSecond
	authority := rest.CopyConfig(config)
	authority.NextProtos = []string{"http/1.1"}
	c := &clients{}
	var errs [4]error
	c.objects, errs[0] = kubernetes.NewForConfig(config)
	c.dynamic, errs[1] = dynamic.NewForConfig(config)
	c.reviews, errs[2] = kubernetes.NewForConfig(reviews)
	c.authority, errs[3] = kubernetes.NewForConfig(authority)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("reach the Kubernetes API: %w", err)
	}
	return c, nil
}

// openCluster has everything from a cluster.
func openCluster(ctx context.Context, o options, log *zap.Logger) (*platform, error) {
	c := o.clients
	if c == nil {
		var err error
		if c, err = newClients(o.kubeconfig); err != nil {
			return nil, err
		}
	}
	p := &platform{
		tap:      nodeauth.NewReviewer(c.reviews, o.audience, o.namespace, o.proxyAccount, log).Tap,
		from:     zap.String("from", "the Kubernetes API"),
		interval: statusInterval,
		door:     &person.Door{Client: c.reviews},
		keep:     inConfigMap(c.objects, o.namespace),
	}
	if err := p.openAuthority(ctx, c.authority, o, log); err != nil {
		return nil, err
	}
	source := &clusterobjects.Source{Client: c.objects, Dynamic: c.dynamic, Log: log}
	p.waiting = source.Waiting
	p.objects = func(ctx context.Context, m *mesh) error { return source.Run(ctx, m.change) }
	p.tasks = append(p.tasks, func(ctx context.Context) error {
		return kube.Maintain(ctx, c.objects, o.namespace, ca.ConfigMap, p.authority.Changed, func() map[string]string { return published(p.authority, log) }, log)
	})
	if !o.noStatus {
		identity, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("name of this host, for the Lease: %w", err)
		}
		identity = cmp.Or(os.Getenv("POD_NAME"), identity)
		statuses := source.Statuses()
		p.tell = statuses.Set
		p.tasks = append(p.tasks, func(ctx context.Context) error {
			return kube.Lead(ctx, c.objects, o.namespace, lease, identity, log, func(ctx context.Context) { _ = statuses.Run(ctx) })
		})
	}
	return p, nil
}
