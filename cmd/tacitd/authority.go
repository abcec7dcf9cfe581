package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/internal/kube"
)

// How often the CA's files or Secret are looked at, and how much longer than
// certificates live a phase of a rotation lasts: until all replicas have
// looked, of which one look may fail and the next one be slow.
const (
	filesInterval  = time.Second
	filesSettle    = 5 * time.Second
	secretInterval = 5 * time.Second
	secretSettle   = 3 * secretInterval
	// unseenSettle is for where proxies do not tell that kubelets have brought
	// them the ConfigMap: these look once a minute, and go by what they have
	// cached for another, and one may have to start again meanwhile.
	unseenSettle = 5 * time.Minute
)

// managedByCertManager is on what cert-manager made, and makes again.
const managedByCertManager = "cert-manager.io/certificate-name"

func (o *options) authority(interval, settle time.Duration, log *zap.Logger) ca.Config {
	return ca.Config{TrustDomain: o.settings.TrustDomain, MaxTTL: o.maxTTL, Interval: interval, Settle: settle, Log: log}
}

// openAuthorityIn opens the CA of a directory.
func (p *platform) openAuthorityIn(ctx context.Context, o options, log *zap.Logger) error {
	dir, err := ca.OpenDir(o.caDir, o.settings.TrustDomain)
	if err != nil {
		return err
	}
	if p.authority, err = ca.New(ctx, dir, o.authority(filesInterval, filesSettle, log)); err != nil {
		return err
	}
	p.tasks = append(p.tasks, p.authority.Run, func(ctx context.Context) error { return dir.Publish(ctx, p.authority) })
	return nil
}

// openAuthority opens the CA: that of a directory if one is named, else that
// of the Secret, which is made if it is not there. It waits for an API server
// that does not answer.
func (p *platform) openAuthority(ctx context.Context, client kubernetes.Interface, o options, log *zap.Logger) (err error) {
	if o.caDir != "" {
		return p.openAuthorityIn(ctx, o, log)
	}
	store := &secretStore{client, o.namespace}
	for {
		_, err := kube.CreateOnce(ctx, client, o.namespace, ca.Secret, func() (*corev1.Secret, error) { return newCASecret(o.settings.TrustDomain) })
		if err == nil {
			if p.authority, err = ca.New(ctx, store, o.authority(secretInterval, o.secretSettle(), log)); err != nil {
				return fmt.Errorf("open the certificate authority in Secret %s/%s: %w", o.namespace, ca.Secret, err)
			}
			p.tasks = append(p.tasks, p.authority.Run)
			return nil
		}
		log.Error("the CA's Secret cannot be read; nothing is served until it can", zap.String("secret", o.namespace+"/"+ca.Secret), zap.Error(err))
		select {
		case <-time.After(openAgain):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// secretSettle is how much longer than certificates live a phase lasts.
func (o *options) secretSettle() time.Duration {
	if o.noFlows {
		return unseenSettle
	}
	return secretSettle
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

// published is what the ConfigMap holds for proxies and people.
func published(a *ca.Authority, log *zap.Logger) map[string]string {
	status, err := json.Marshal(a.Status())
	if err != nil {
		log.Error("status of the certificate authority", zap.Error(err))
	}
	return map[string]string{ca.RootsKey: string(a.Roots()), ca.StatusKey: string(status)}
}

// secretStore is a ca.Store in a Secret; requests are annotations of the
// ConfigMap, which people may write to who may not read the key.
type secretStore struct {
	client    kubernetes.Interface
	namespace string
}

// rotationKey is the key of the Secret with the state of a rotation.
const rotationKey = "rotation.json"

// Load implements ca.Store.
func (s *secretStore) Load(ctx context.Context) (*ca.State, error) {
	secret, err := s.get(ctx)
	if err != nil {
		return nil, err
	}
	return stateOf(secret)
}

func (s *secretStore) get(ctx context.Context) (*corev1.Secret, error) {
	secret, err := s.client.CoreV1().Secrets(s.namespace).Get(ctx, ca.Secret, metav1.GetOptions{})
	return secret, kube.Explain(err, "get", "secrets", s.namespace)
}

func stateOf(secret *corev1.Secret) (*ca.State, error) {
	state := &ca.State{
		Key: secret.Data[corev1.TLSPrivateKeyKey], Chain: secret.Data[corev1.TLSCertKey], Roots: secret.Data[corev1.ServiceAccountRootCAKey],
	}
	if name := secret.Annotations[managedByCertManager]; name != "" {
		state.Fixed = fmt.Sprintf("the Secret %s is that of cert-manager's Certificate %s: rotate it there; tacitd follows", ca.Secret, name)
	}
	if text := secret.Data[rotationKey]; len(text) > 0 && json.Unmarshal(text, &state.Rotation) != nil {
		return nil, fmt.Errorf("%s in Secret %s: %d bytes that are no state of a rotation", rotationKey, ca.Secret, len(text)) // the parser's text may quote keys
	}
	return state, nil
}

// Save implements ca.Store.
func (s *secretStore) Save(ctx context.Context, before, next *ca.State) error {
	secret, err := s.get(ctx)
	if err != nil {
		return err
	}
	now, err := stateOf(secret)
	if err != nil {
		return err
	}
	if !now.Equal(before) {
		return ca.ErrChanged
	}
	rotation, err := json.Marshal(next.Rotation)
	if err != nil {
		return fmt.Errorf("state of the rotation: %w", err)
	}
	secret.Data[corev1.TLSPrivateKeyKey], secret.Data[corev1.TLSCertKey], secret.Data[corev1.ServiceAccountRootCAKey] = next.Key, next.Chain, next.Roots
	secret.Data[rotationKey] = rotation
	// The API server refuses it if there was another write since get.
	_, err = s.client.CoreV1().Secrets(s.namespace).Update(ctx, secret, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		return ca.ErrChanged
	}
	return kube.Explain(err, "update", "secrets", s.namespace)
}

// Requested implements ca.Store.
func (s *secretStore) Requested(ctx context.Context) (string, error) {
	roots, err := s.published(ctx)
	return roots.Annotations[ca.RequestAnnotation], err
}

// Published implements ca.Store.
func (s *secretStore) Published(ctx context.Context) (ca.Status, error) {
	roots, err := s.published(ctx)
	return ca.PublishedStatus([]byte(roots.Data[ca.StatusKey])), err
}

// published is the ConfigMap, an empty one if it is still to be made.
func (s *secretStore) published(ctx context.Context) (*corev1.ConfigMap, error) {
	roots, err := s.client.CoreV1().ConfigMaps(s.namespace).Get(ctx, ca.ConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return &corev1.ConfigMap{}, nil
	case err != nil:
		return &corev1.ConfigMap{}, kube.Explain(err, "get", "configmaps", s.namespace)
	}
	return roots, nil
}
