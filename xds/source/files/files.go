// Package files takes the cluster's objects from a directory of Kubernetes
// manifests, which it watches.
//
// What does not belong here: finding and reading manifests
// (internal/manifests), and what the objects lead to (xds/build).
package files

import (
	"context"
	"errors"
	"slices"
	"strings"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/internal/manifests"
	"github.com/tacit-mesh/tacit/xds/build"
	policykinds "github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/source/security"
)

// Source is a directory of manifests.
type Source struct {
	Dir string
}

// Run reads the directory and calls changed with the objects and with what is
// wrong with the manifests, then again on every change of either, until the
// context ends; it returns the context's error.
//
// Until every policy has been read once, objects are nil: without its last
// good version, which a restart forgets, a broken policy would be an absent
// one.
func (s *Source) Run(ctx context.Context, changed func(objects *build.Objects, errs []error)) error {
	dir := manifests.Dir{Path: s.Dir, Kinds: kinds(), Ignore: ignored}
	started := false
	return dir.Run(ctx, func(list []manifests.Object, errs []error) {
		started = started || !mayHidePolicy(errs)
		if !started {
			changed(nil, append(slices.Clip(errs), errors.New("nothing is served until these errors are mended: they may hide a policy")))
			return
		}
		changed(collect(list), errs)
	})
}

// Read reads files and directories once.
func Read(paths ...string) (*build.Objects, []error) {
	dir := manifests.Dir{Kinds: kinds(), Ignore: ignored}
	list, errs := dir.ReadAll(paths...)
	return collect(list), errs
}

// mayHidePolicy reports whether an error is about a policy, or about
// something that may be one.
func mayHidePolicy(errs []error) bool {
	for _, err := range errs {
		var e *manifests.Error
		if !errors.As(err, &e) {
			return true
		}
		switch e.Kind {
		case "Pod", "Namespace", "Node", "Service", "EndpointSlice":
		default:
			return true
		}
	}
	return false
}

func kinds() []manifests.Kind {
	core := []string{"v1"}
	kinds := []manifests.Kind{
		{APIVersions: core, Kind: "Namespace", Cluster: true, Decode: manifests.Strict[corev1.Namespace]},
		{APIVersions: core, Kind: "Node", Cluster: true, Decode: manifests.Strict[corev1.Node]},
		{APIVersions: core, Kind: "Pod", Decode: pod},
		{APIVersions: core, Kind: "Service", Decode: namespaced[corev1.Service]},
		{APIVersions: []string{"discovery.k8s.io/v1"}, Kind: "EndpointSlice", Decode: namespaced[discoveryv1.EndpointSlice]},
	}
	for _, k := range security.Kinds() {
		kinds = append(kinds, k.Kind)
	}
	return kinds
}

// ignored are kinds that manifests of applications hold beside those that
// matter here. Of security.istio.io none is: a policy that is not understood
// is an error.
func ignored(apiVersion, kind string) bool {
	if group, _, _ := strings.Cut(apiVersion, "/"); group == security.Group || group == "policy.tacit.mesh" {
		return false
	}
	switch apiVersion {
	case "discovery.k8s.io/v1":
		return false
	case "v1":
		switch kind {
		case "ConfigMap", "Endpoints", "LimitRange", "PersistentVolume", "PersistentVolumeClaim",
			"ReplicationController", "ResourceQuota", "Secret", "ServiceAccount":
			return true
		}
		return false
	}
	return true
}

func namespaced[T any, P interface {
	*T
	metav1.Object
}](d *manifests.Document) (any, error) {
	object := P(new(T))
	if err := d.Decode("", object); err != nil {
		return nil, err
	}
	if object.GetNamespace() == "" {
		object.SetNamespace(metav1.NamespaceDefault)
	}
	return object, nil
}

func pod(d *manifests.Document) (any, error) {
	object, err := namespaced[corev1.Pod](d)
	if err != nil {
		return nil, err
	}
	p := object.(*corev1.Pod)
	p.UID = types.UID(manifests.PodUID(string(p.UID), p.Namespace, p.Name))
	return p, nil
}

func collect(list []manifests.Object) *build.Objects {
	o := &build.Objects{}
	for _, object := range list {
		switch v := object.Value.(type) {
		case *corev1.Namespace:
			o.Namespaces = append(o.Namespaces, v)
		case *corev1.Node:
			o.Nodes = append(o.Nodes, v)
		case *corev1.Pod:
			o.Pods = append(o.Pods, v)
		case *corev1.Service:
			o.Services = append(o.Services, v)
		case *discoveryv1.EndpointSlice:
			o.EndpointSlices = append(o.EndpointSlices, v)
		case *securityv1.AuthorizationPolicy:
			o.AuthorizationPolicies = append(o.AuthorizationPolicies, v)
		case *securityv1.RequestAuthentication:
			o.RequestAuthentications = append(o.RequestAuthentications, v)
		case *policykinds.RateLimit:
			o.RateLimits = append(o.RateLimits, v)
		case *policykinds.HTTPLocalRateLimitPolicy:
			o.LinkerdRateLimits = append(o.LinkerdRateLimits, v)
		case *policykinds.RevokedIdentity:
			o.RevokedIdentities = append(o.RevokedIdentities, v)
		case *bypass.Bypass:
			o.Bypasses = append(o.Bypasses, v)
		case *policykinds.Server:
			o.Servers = append(o.Servers, v)
		case *securityv1.PeerAuthentication:
			o.PeerAuthentications = append(o.PeerAuthentications, v)
		}
	}
	return o
}
