// Package kube has what tacitd does with the Kubernetes API beside reading the
// mesh: making a Secret once, keeping a ConfigMap, leading.
//
// What does not belong here: how to reach the API (access), and what the agent
// does with it (nodeapi), which is to stay small.
package kube

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// CreateOnce returns the Secret of that name, which fresh makes if it is not
// there. One that is there is never written to: of several programs that make
// it at the same time, one succeeds, and all return what that one made.
func CreateOnce(ctx context.Context, client kubernetes.Interface, namespace, name string, fresh func() (*corev1.Secret, error)) (*corev1.Secret, error) {
	secrets := client.CoreV1().Secrets(namespace)
	found, err := secrets.Get(ctx, name, metav1.GetOptions{})
	if err == nil || !apierrors.IsNotFound(err) {
		return found, Explain(err, "get", "secrets", namespace)
	}
	made, err := fresh()
	if err != nil {
		return nil, err
	}
	made.Namespace, made.Name = namespace, name
	created, err := secrets.Create(ctx, made, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		found, err = secrets.Get(ctx, name, metav1.GetOptions{})
		return found, Explain(err, "get", "secrets", namespace)
	}
	return created, Explain(err, "create", "secrets", namespace)
}

// KeepConfigMap makes a ConfigMap hold the data, creates it if it is not there,
// and leaves the other keys in it alone.
func KeepConfigMap(ctx context.Context, client kubernetes.Interface, namespace, name string, data map[string]string) error {
	configMaps := client.CoreV1().ConfigMaps(namespace)
	return retry.OnError(retry.DefaultBackoff, func(err error) bool {
		return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
	}, func() error {
		have, err := configMaps.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			fresh := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: data}
			_, err = configMaps.Create(ctx, fresh, metav1.CreateOptions{})
			return Explain(err, "create", "configmaps", namespace)
		}
		if err != nil {
			return Explain(err, "get", "configmaps", namespace)
		}
		want := maps.Clone(have.Data)
		if want == nil {
			want = map[string]string{}
		}
		maps.Copy(want, data)
		if maps.Equal(have.Data, want) {
			return nil
		}
		have.Data = want
		_, err = configMaps.Update(ctx, have, metav1.UpdateOptions{})
		return Explain(err, "update", "configmaps", namespace)
	})
}

// MergeConfigMap replaces the text of a key in a ConfigMap by what merge makes of
// it, creates the ConfigMap if it is not there, and does so again where somebody
// else has written meanwhile.
func MergeConfigMap(ctx context.Context, client kubernetes.Interface, namespace, name, key string, merge func(kept string) (string, error)) error {
	configMaps := client.CoreV1().ConfigMaps(namespace)
	return retry.OnError(retry.DefaultBackoff, func(err error) bool {
		return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
	}, func() error {
		have, err := configMaps.Get(ctx, name, metav1.GetOptions{})
		absent := apierrors.IsNotFound(err)
		switch {
		case absent:
			have = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		case err != nil:
			return Explain(err, "get", "configmaps", namespace)
		}
		text, err := merge(have.Data[key])
		if err != nil || !absent && text == have.Data[key] {
			return err
		}
		if have.Data == nil {
			have.Data = map[string]string{}
		}
		have.Data[key] = text
		if absent {
			_, err = configMaps.Create(ctx, have, metav1.CreateOptions{})
			return Explain(err, "create", "configmaps", namespace)
		}
		_, err = configMaps.Update(ctx, have, metav1.UpdateOptions{})
		return Explain(err, "update", "configmaps", namespace)
	})
}

// Explain adds to an error that RBAC is to blame for what would mend it;
// namespace is "" for the whole cluster.
func Explain(err error, verb, resource, namespace string) error {
	if !apierrors.IsForbidden(err) {
		return err
	}
	where := "a ClusterRole"
	if namespace != "" {
		where = "a Role in namespace " + namespace
	}
	return fmt.Errorf("%w: grant this program's ServiceAccount the verb %s on %s, in %s", err, verb, resource, where)
}
