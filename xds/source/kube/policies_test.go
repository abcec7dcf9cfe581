package kube

import (
	"strings"
	"testing"
	"time"

	securityv1beta1 "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/source/security"
)

// The kinds of policies may come after everything else, and go.
func TestDefinitionsComeAndGo(t *testing.T) {
	f := newFixture(t)
	f.everything()
	f.start()
	f.await("without definitions", func(r build.Result, _ []error) bool { return len(r.Workloads) == 1 && len(r.Policies) == 0 })
	kind := security.Kinds()[0]
	ctx, definitions := t.Context(), f.dynamic.Resource(crds)
	if _, err := definitions.Create(ctx, parse(t, definition(kind, "v1", false)), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.createPolicy(0, "v1", allowWeb)
	if _, err := definitions.Update(ctx, parse(t, definition(kind, "v1", true)), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.await("the kind has come", func(r build.Result, _ []error) bool { return len(r.Policies) == 1 })
	if err := definitions.Delete(ctx, kind.Resource+".security.istio.io", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.await("the kind has gone", func(r build.Result, _ []error) bool { return len(r.Policies) == 0 })
	if _, err := definitions.Create(ctx, parse(t, definition(kind, "v1", true)), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.await("the kind is back", func(r build.Result, _ []error) bool { return len(r.Policies) == 1 })
}

// A kind without a version that is read here may hide policies: nothing is
// told before it has one or is gone, and what was known stays.
func TestDefinitionWithoutVersion(t *testing.T) {
	kind := security.Kinds()[0]
	f := newFixture(t, definition(kind, "v9", true))
	f.createPolicy(0, "v1", allowWeb)
	f.start()
	f.awaitWaiting(func(waiting []string) bool {
		return len(waiting) == 1 && waiting[0] == "authorizationpolicies.security.istio.io: none of its versions is served that are read here (v1, v1beta1)"
	})
	f.mu.Lock()
	changed := f.changed
	f.mu.Unlock()
	select {
	case <-changed:
		t.Error("something was told")
	case <-time.After(500 * time.Millisecond): // several times as long as it would take
	}
	definitions := f.dynamic.Resource(crds)
	define := func(version string) {
		t.Helper()
		if _, err := definitions.Update(t.Context(), parse(t, definition(kind, version, true)), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	define("v1")
	f.await("the version has come", func(r build.Result, _ []error) bool { return len(r.Policies) == 1 })
	define("v9")
	f.pod("late")
	f.await("a pod that came without the version", func(r build.Result, _ []error) bool { return len(r.Workloads) == 1 && len(r.Policies) == 1 })
}

// A kind that goes before its objects could be listed holds nothing up.
func TestDefinitionGoesBeforeItsList(t *testing.T) {
	kind := security.Kinds()[0]
	f := newFixture(t, definition(kind, "v1", true))
	f.dynamic.PrependReactor("list", kind.Resource, func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: kind.Resource}, "")
	})
	f.start()
	f.awaitWaiting(func(waiting []string) bool {
		return len(waiting) == 1 && strings.HasPrefix(waiting[0], "authorizationpolicies.security.istio.io: failed to list")
	})
	if err := f.dynamic.Resource(crds).Delete(t.Context(), kind.Resource+".security.istio.io", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.await("without the kind", func(build.Result, []error) bool { return true })
}

// A policy that cannot be read stays as it was; one that never could be read
// denies.
func TestPolicyThatCannotBeRead(t *testing.T) {
	f := newFixture(t, definitions("v1")...)
	f.everything()
	f.createPolicy(0, "v1", broken)
	f.start()
	denies := func(r build.Result, errs []error) bool {
		return len(r.Policies) == 1 && r.Policies[0].Action == model.ActionDeny && r.Policies[0].Scope == model.ScopeSelector && len(r.Workloads[0].Policies) == 1 && len(errs) == 1
	}
	f.await("nothing is known of it", denies)
	const want = `AuthorizationPolicy shop/p: spec.rules[0].from[0].source.nameSpaces: unknown field "nameSpaces": until that is mended everything is denied that it may be about`
	if got := f.firstError(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	allows := func(n int) func(build.Result, []error) bool {
		return func(r build.Result, errs []error) bool {
			return len(r.Policies) == 1 && r.Policies[0].Action == model.ActionAllow && len(errs) == n
		}
	}
	f.updatePolicy(allowWeb)
	f.await("mended", allows(0))
	f.updatePolicy(broken)
	f.await("broken again", allows(1))
	if got := f.firstError(); !strings.HasSuffix(got, "its last good version, of generation 1, stays in force") {
		t.Errorf("error %s", got)
	}
	if err := f.dynamic.Resource(policyResource(0, "v1")).Namespace("shop").Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.await("gone", func(r build.Result, errs []error) bool { return len(r.Policies) == 0 && len(errs) == 0 })
}

// What stands in for an unreadable policy denies whatever it covers.
func TestClosed(t *testing.T) {
	meta := metav1.ObjectMeta{Namespace: "shop", Name: "p"}
	for _, kind := range security.Kinds() {
		if kind.Group() != security.Group {
			continue // about limits
		}
		r := build.Build(build.Settings{}, build.Objects{AuthorizationPolicies: authorization(kind.Closed(meta, nil)), PeerAuthentications: peer(kind.Closed(meta, nil)), RequestAuthentications: request(kind.Closed(meta, nil))})
		for _, p := range r.Policies {
			if p.Action != model.ActionDeny {
				t.Errorf("%s: %+v", kind.Kind.Kind, p)
			}
		}
		if len(r.Policies) == 0 {
			t.Errorf("%s: no policy", kind.Kind.Kind)
		}
	}
	p := authorization(security.Kinds()[0].Closed(meta, nil))[0]
	if p.Spec.Action != securityv1beta1.AuthorizationPolicy_DENY || p.Spec.Selector != nil {
		t.Errorf("stands in: %v", p)
	}
}

func request(o metav1.Object) (out []*securityv1.RequestAuthentication) {
	if p, ok := o.(*securityv1.RequestAuthentication); ok {
		out = append(out, p)
	}
	return out
}

func authorization(o metav1.Object) (out []*securityv1.AuthorizationPolicy) {
	if p, ok := o.(*securityv1.AuthorizationPolicy); ok {
		out = append(out, p)
	}
	return out
}

func peer(o metav1.Object) (out []*securityv1.PeerAuthentication) {
	if p, ok := o.(*securityv1.PeerAuthentication); ok {
		out = append(out, p)
	}
	return out
}
