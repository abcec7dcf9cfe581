package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/sight/uses"
	"github.com/tacit-mesh/tacit/xds/source/kube"
	"github.com/tacit-mesh/tacit/xds/source/security"
)

// What the programs make themselves, beside what the chart makes.
const (
	caSecret      = "tacit-ca"
	caConfigMap   = "tacit-ca-root"
	usesConfigMap = uses.ConfigMap
	lease         = "tacitd"
)

// optIn is the label by which namespaces are in the mesh.
const optIn = "tacit.mesh/dataplane"

// removeLeftovers takes away what Helm knows nothing of, and names what is
// left because it is the user's.
func (r Removal) removeLeftovers(ctx context.Context, c *cluster.Cluster) error {
	core := c.Client.CoreV1()
	problems := []error{
		gone("ConfigMap "+caConfigMap, core.ConfigMaps(c.Namespace).Delete(ctx, caConfigMap, meta.DeleteOptions{})),
		gone("ConfigMap "+usesConfigMap, core.ConfigMaps(c.Namespace).Delete(ctx, usesConfigMap, meta.DeleteOptions{})),
		gone("Lease "+lease, c.Client.CoordinationV1().Leases(c.Namespace).Delete(ctx, lease, meta.DeleteOptions{})),
	}
	if r.KeepCA {
		fmt.Fprintf(r.Out, "Left: Secret %s in namespace %s.\n", caSecret, c.Namespace)
	} else {
		problems = append(problems,
			gone("Secret "+caSecret, core.Secrets(c.Namespace).Delete(ctx, caSecret, meta.DeleteOptions{})),
			r.removeNamespace(ctx, c))
	}
	problems = append(problems, removeConditions(ctx, c), r.removeKinds(ctx, c), r.nameOptIns(ctx, c))
	return errors.Join(problems...)
}

// removeConditions takes off the policies what would go on to say that they
// are enforced.
func removeConditions(ctx context.Context, c *cluster.Cluster) error {
	var problems []error
	for _, kind := range security.Kinds() {
		for _, version := range kind.Versions() {
			policies := c.Dynamic.Resource(schema.GroupVersionResource{Group: kind.Group(), Version: version, Resource: kind.Resource})
			list, err := policies.List(ctx, meta.ListOptions{})
			if apierrors.IsNotFound(err) {
				continue // no such kind, or not in this version
			}
			if err != nil {
				problems = append(problems, fmt.Errorf("look for conditions to remove from %s: %w", kind.Resource, err))
				break
			}
			for i := range list.Items {
				policy := &list.Items[i]
				if withoutCondition(policy) {
					_, err := policies.Namespace(policy.GetNamespace()).UpdateStatus(ctx, policy, meta.UpdateOptions{})
					problems = append(problems, gone("the condition of "+policy.GetNamespace()+"/"+policy.GetName(), err))
				}
			}
			break
		}
	}
	return errors.Join(problems...)
}

// withoutCondition takes ours off an object, and reports whether there was one.
func withoutCondition(policy *unstructured.Unstructured) bool {
	all, _, err := unstructured.NestedSlice(policy.Object, "status", "conditions")
	if err != nil {
		return false
	}
	others := slices.DeleteFunc(slices.Clone(all), func(condition any) bool {
		fields, ok := condition.(map[string]any)
		return ok && fields["type"] == kube.EnforcedCondition
	})
	return len(others) < len(all) && unstructured.SetNestedSlice(policy.Object, others, "status", "conditions") == nil
}

// gone forgives that something is not there.
func gone(what string, err error) error {
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("remove %s: %w", what, err)
}

// removeNamespace takes the namespace away if an installation has made it.
func (r Removal) removeNamespace(ctx context.Context, c *cluster.Cluster) error {
	namespaces := c.Client.CoreV1().Namespaces()
	now, err := namespaces.Get(ctx, c.Namespace, meta.GetOptions{})
	if err != nil {
		return gone("namespace "+c.Namespace, err)
	}
	if now.Labels[ownerLabel] != owner {
		fmt.Fprintf(r.Out, "Left: namespace %s, which was there before.\n", c.Namespace)
		return nil
	}
	return gone("namespace "+c.Namespace, namespaces.Delete(ctx, c.Namespace, meta.DeleteOptions{}))
}

var kinds = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// removeKinds takes away the kinds that an installation has brought, unless
// there are objects of them.
func (r Removal) removeKinds(ctx context.Context, c *cluster.Cluster) error {
	ours, err := c.Dynamic.Resource(kinds).List(ctx, meta.ListOptions{LabelSelector: "app.kubernetes.io/part-of=tacit"})
	if err != nil {
		return fmt.Errorf("look for kinds to remove: %w", err)
	}
	var problems []error
	for i := range ours.Items {
		kind := &ours.Items[i]
		used, err := inUse(ctx, c, kind)
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("look for objects of %s: %w", kind.GetName(), err))
		case used:
			fmt.Fprintf(r.Out, "Left: %s, of which there are objects.\n", kind.GetName())
		default:
			problems = append(problems, gone(kind.GetName(), c.Dynamic.Resource(kinds).Delete(ctx, kind.GetName(), meta.DeleteOptions{})))
		}
	}
	return errors.Join(problems...)
}

func inUse(ctx context.Context, c *cluster.Cluster, kind *unstructured.Unstructured) (bool, error) {
	group, _, _ := unstructured.NestedString(kind.Object, "spec", "group")
	plural, _, _ := unstructured.NestedString(kind.Object, "spec", "names", "plural")
	versions, _, _ := unstructured.NestedSlice(kind.Object, "spec", "versions")
	for _, v := range versions {
		version, ok := v.(map[string]any)
		if served, _ := version["served"].(bool); !ok || !served {
			continue
		}
		name, _ := version["name"].(string)
		// All versions show the same objects.
		list, err := c.Dynamic.Resource(schema.GroupVersionResource{Group: group, Version: name, Resource: plural}).List(ctx, meta.ListOptions{Limit: 1})
		if err != nil {
			return false, err
		}
		return len(list.Items) > 0, nil
	}
	return false, errors.New("it serves no version")
}

// nameOptIns says which labels are left: they are part of the users' own
// manifests.
func (r Removal) nameOptIns(ctx context.Context, c *cluster.Cluster) error {
	list, err := c.Client.CoreV1().Namespaces().List(ctx, meta.ListOptions{LabelSelector: optIn})
	if err != nil {
		return fmt.Errorf("look for namespaces with the label %s: %w", optIn, err)
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	if len(names) > 0 {
		fmt.Fprintf(r.Out, "Left: the label %s of %d namespaces. To take it off:\n  kubectl label namespace %s %s-\n",
			optIn, len(names), strings.Join(names, " "), optIn)
	}
	return nil
}
