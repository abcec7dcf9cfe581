package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/identity/nodeauth"
	"github.com/tacit-mesh/tacit/internal/kube"
	"github.com/tacit-mesh/tacit/internal/kube/access"
	"github.com/tacit-mesh/tacit/xds/build"
	clusterobjects "github.com/tacit-mesh/tacit/xds/source/kube"
)

// What tacitd has in its namespace.
const (
	caSecret      = "tacit-ca"
	rootConfigMap = "tacit-ca-root"
	rootKey       = "root-cert.pem"
	lease         = "tacitd"
)

const (
	// While the API server does not answer at the start.
	openAgain = 5 * time.Second
	// How often the CA's Secret is looked at.
	caInterval = time.Minute
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
}

func newClients(kubeconfig string) (*clients, error) {
	config, err := access.Config(kubeconfig)
	if err != nil {
		return nil, err
	}
	reviews := rest.CopyConfig(config)
	reviews.QPS, reviews.Burst = reviewsPerSecond, 2*reviewsPerSecond
	c := &clients{}
	var errs [3]error
	c.objects, errs[0] = kubernetes.NewForConfig(config)
	c.dynamic, errs[1] = dynamic.NewForConfig(config)
	c.reviews, errs[2] = kubernetes.NewForConfig(reviews)
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
	}
	if err := p.openAuthority(ctx, c.objects, o, log); err != nil {
		return nil, err
	}
	source := &clusterobjects.Source{Client: c.objects, Dynamic: c.dynamic, Log: log}
	p.waiting = source.Waiting
	p.objects = func(ctx context.Context, m *mesh) error { return source.Run(ctx, m.change) }
	root := map[string]string{rootKey: string(p.authority.Roots())}
	p.tasks = append(p.tasks, func(ctx context.Context) error {
		return kube.Maintain(ctx, c.objects, o.namespace, rootConfigMap, root, log)
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

// openAuthority opens the CA: that of a directory if one is named, else that
// of the Secret, which is made if it is not there. It waits for an API server
// that does not answer.
func (p *platform) openAuthority(ctx context.Context, client kubernetes.Interface, o options, log *zap.Logger) (err error) {
	if o.caDir != "" {
		p.authority, err = ca.Open(o.caDir, o.settings.TrustDomain)
		return err
	}
	for {
		secret, err := kube.CreateOnce(ctx, client, o.namespace, caSecret, func() (*corev1.Secret, error) { return newCASecret(o.settings.TrustDomain) })
		if err == nil {
			p.tasks = append(p.tasks, func(ctx context.Context) error { return followCASecret(ctx, client, o.namespace, secret) })
			p.authority, err = ca.Parse(secret.Data[corev1.TLSPrivateKeyKey], secret.Data[corev1.TLSCertKey], secret.Data[corev1.ServiceAccountRootCAKey])
			if err != nil {
				return fmt.Errorf("open the certificate authority in Secret %s/%s: %w", o.namespace, caSecret, err)
			}
			return nil
		}
		log.Error("the CA's Secret cannot be read; nothing is served until it can", zap.String("secret", o.namespace+"/"+caSecret), zap.Error(err))
		select {
		case <-time.After(openAgain):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func newCASecret(trustDomain string) (*corev1.Secret, error) {
	key, root, err := ca.Generate(trustDomain)
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{Type: corev1.SecretTypeTLS, Data: map[string][]byte{
		corev1.TLSPrivateKeyKey: key, corev1.TLSCertKey: root, corev1.ServiceAccountRootCAKey: root,
	}}, nil
}

// followCASecret ends with an error when somebody has put another CA into the
// Secret: tacitd starts again with it. One that is gone, or cannot be read,
// changes nothing.
func followCASecret(ctx context.Context, client kubernetes.Interface, namespace string, opened *corev1.Secret) error {
	tick := time.NewTicker(caInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		now, err := client.CoreV1().Secrets(namespace).Get(ctx, caSecret, metav1.GetOptions{})
		if err == nil && isOtherCA(opened, now) {
			return fmt.Errorf("the CA in Secret %s/%s was replaced: starting again with the new one", namespace, caSecret)
		}
	}
}

func isOtherCA(opened, now *corev1.Secret) bool {
	for _, key := range []string{corev1.TLSPrivateKeyKey, corev1.TLSCertKey, corev1.ServiceAccountRootCAKey} {
		if !bytes.Equal(opened.Data[key], now.Data[key]) {
			return true
		}
	}
	return false
}
