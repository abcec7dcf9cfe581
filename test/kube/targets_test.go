package kube

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/retry"

	"github.com/tacit-mesh/tacit/xds/source/kube"
)

// turnAway is a policy about the requests to one path, of what it targets.
const turnAway = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %[1]s, namespace: services}
spec:
  targetRefs: [%[2]s]
  action: DENY
  rules: [{to: [{operation: {paths: [/%[1]s]}}]}]
---
`

// targets are policies with targetRefs to what is in namespace services: which
// services lead to pods that they cover, and what their status says.
func targets() []target {
	return []target{
		{"by-service", "{group: '', kind: Service, name: local}", []string{"local", "named"}, "True", "enforced at L7"},
		{"by-workload", "{group: apps, kind: StatefulSet, name: db}", []string{"local", "named"}, "True", "enforced at L7"},
		{"by-pod", "{group: '', kind: Pod, name: unready}", []string{"early"}, "True", "enforced at L7"},
		{"by-named-port", "{group: '', kind: Service, name: named}", []string{"local", "named"}, "True", "enforced at L7"},
		{"by-gateway", "{group: gateway.networking.k8s.io, kind: Gateway, name: none}", nil, "False", "not enforced: spec.targetRefs: not enforced on Gateway none: such a policy is for a proxy of its own"},
	}
}

type target struct {
	name, ref       string
	covered         []string
	status, message string
}

// targetedPolicies cover the pods of services and workloads that they name, and no
// others, and their status says so, whichever of several control planes leads.
func (e environment) targetedPolicies(client string) {
	e.t.Helper()
	e.scale("tacitd", 2)
	e.atEnd(func(e environment) error {
		e.scale("tacitd", 1)
		return nil
	})
	var text strings.Builder
	for _, t := range targets() {
		fmt.Fprintf(&text, turnAway, t.name, t.ref)
	}
	e.must(e.Apply(e.ctx, text.String()))
	for _, t := range targets() {
		e.awaitEnforced(t, 1)
		for _, host := range []string{"local", "named", "early"} {
			e.eventually(t.name+" and requests to service "+host, func() error { return e.turnsAway(t, client, host) })
		}
	}

	// Another control plane goes on with the statuses, and leaves others' alone.
	changed := targets()[0]
	e.addCondition(changed.name, map[string]any{"type": "example.com/Seen", "status": "True"})
	before := e.leader()
	e.must(e.Delete(e.ctx, "v1", "Pod", Namespace, before))
	e.must(e.Patch(e.ctx, "security.istio.io/v1", "AuthorizationPolicy", "services", changed.name, "spec: {action: AUDIT}"))
	e.awaitEnforced(changed, 2)
	if now := e.leader(); now == before {
		e.t.Errorf("%s leads, which is gone", now)
	}
	if others := e.conditions(changed.name)["example.com/Seen"]; others["status"] != "True" {
		e.t.Errorf("the condition of another is %v", others)
	}
	e.eventually("a policy that denies nothing any more", func() error { return e.get("services", client, "http://named/"+changed.name) })
}

// turnsAway says what is wrong with the answers to requests that a policy is about
// and to others.
func (e environment) turnsAway(t target, client, host string) error {
	if err := e.get("services", client, "http://"+host+"/"); err != nil {
		return err
	}
	err := e.get("services", client, "http://"+host+"/"+t.name)
	if slices.Contains(t.covered, host) {
		return says(err, "403 Forbidden")
	}
	return err
}

// awaitEnforced waits until a policy's status is as expected, and about that
// generation of it.
func (e environment) awaitEnforced(t target, generation int64) {
	e.t.Helper()
	e.eventually("the status of "+t.name, func() error {
		c := e.conditions(t.name)[kube.EnforcedCondition]
		message, _ := c["message"].(string)
		if c["status"] != t.status || !strings.Contains(message, t.message) || c["observedGeneration"] != generation {
			return fmt.Errorf("%v, want %s and %q of generation %d", c, t.status, t.message, generation)
		}
		return nil
	})
}

// conditions are those of a policy, by type.
func (e environment) conditions(name string) map[string]map[string]any {
	e.t.Helper()
	all := map[string]map[string]any{}
	list, _, err := unstructured.NestedSlice(e.authorizationPolicy(name).Object, "status", "conditions")
	e.must(err)
	for _, c := range list {
		fields := c.(map[string]any)
		all[fields["type"].(string)] = fields
	}
	return all
}

// policies are those of namespace services.
func (e environment) policies() dynamic.ResourceInterface {
	return e.dynamic.Resource(schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}).Namespace("services")
}

func (e environment) authorizationPolicy(name string) *unstructured.Unstructured {
	e.t.Helper()
	policy, err := e.policies().Get(e.ctx, name, metav1.GetOptions{})
	e.must(err)
	return policy
}

// addCondition adds one to a policy's, as another controller does.
func (e environment) addCondition(name string, condition map[string]any) {
	e.t.Helper()
	e.must(retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		policy := e.authorizationPolicy(name)
		list, _, err := unstructured.NestedSlice(policy.Object, "status", "conditions")
		if err != nil {
			return err
		}
		if err := unstructured.SetNestedSlice(policy.Object, append(list, condition), "status", "conditions"); err != nil {
			return err
		}
		_, err = e.policies().UpdateStatus(e.ctx, policy, metav1.UpdateOptions{})
		return err
	}))
}

// leader is the control plane's pod that writes statuses.
func (e environment) leader() (pod string) {
	e.t.Helper()
	e.must(Await(e.ctx, e.Cluster, Namespace, "tacitd", func(lease *coordinationv1.Lease) error {
		if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
			return errors.New("nobody has it")
		}
		pod = *lease.Spec.HolderIdentity
		return nil
	}))
	return pod
}
