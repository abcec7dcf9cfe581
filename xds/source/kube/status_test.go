package kube

import (
	"context"
	"testing"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/xds/build"
)

const withOthers = allowWeb + "status: {conditions: [{type: istio.io/Accepted, status: \"True\", extra: [1]}], validationMessages: [{type: x}]}\n"

// withPolicy is a cluster with one policy that its source has read.
func withPolicy(t *testing.T, policy string) *fixture {
	f := newFixture(t, definitions("v1")...)
	f.createPolicy(0, "v1", policy)
	f.start()
	f.await("the policy", func(r build.Result, _ []error) bool { return len(r.Policies) == 1 })
	return f
}

// statuses runs a writer over a cluster with one policy.
func statuses(t *testing.T, policy string) (*fixture, *Statuses) {
	f := withPolicy(t, policy)
	s := f.source.Statuses()
	s.limit = rate.NewLimiter(rate.Inf, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f, s
}

// watchPolicy yields each version of the policy from now on.
func (f *fixture) watchPolicy() <-chan *unstructured.Unstructured {
	f.t.Helper()
	w, err := f.dynamic.Resource(policyResource(0, "v1")).Namespace("shop").Watch(f.t.Context(), metav1.ListOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	out := make(chan *unstructured.Unstructured, 100)
	go func() {
		for e := range w.ResultChan() {
			if u, ok := e.Object.(*unstructured.Unstructured); ok && e.Type == watch.Modified {
				out <- u
			}
		}
		close(out)
	}()
	f.t.Cleanup(w.Stop)
	return out
}

func next(t *testing.T, versions <-chan *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	select {
	case u := <-versions:
		return u
	case <-time.After(patient):
		t.Fatal("the policy has not changed")
		panic("unreachable")
	}
}

func enforced(u *unstructured.Unstructured) map[string]any {
	for _, c := range conditionsOf(u) {
		if c["type"] == EnforcedCondition {
			return c
		}
	}
	return nil
}

func TestStatusIsWrittenBesideOthers(t *testing.T) {
	f, s := statuses(t, withOthers)
	versions := f.watchPolicy()
	st := build.PolicyStatus{Kind: "AuthorizationPolicy", Namespace: "shop", Name: "p", Generation: 1, Enforced: true, Layer: "L4"}
	for _, step := range []struct {
		change                  func()
		status, reason, message string
		generation              int64
	}{
		{func() {}, "True", "Enforced", "enforced at L4", 1},
		{func() { st.Findings = []string{"a: does b; probably meant: c"} }, "True", "Enforced", "enforced at L4; doubtful: a: does b; probably meant: c", 1},
		{func() { st.Messages = []string{"not on port 80", "nor there"} }, "False", "EnforcedInPart", "enforced at L4, but not everywhere as written: not on port 80; nor there; doubtful: a: does b; probably meant: c", 1},
		{func() { st.Findings, st.Enforced, st.Generation = nil, false, 2 }, "False", "NotEnforced", "not enforced: not on port 80; nor there", 2},
	} {
		step.change()
		s.Set([]build.PolicyStatus{st, {Kind: "AuthorizationPolicy", Namespace: "shop", Name: "gone"}, {Kind: "Unheard", Namespace: "shop", Name: "p"}})
		u := next(t, versions)
		c := enforced(u)
		if c["status"] != step.status || c["reason"] != step.reason || c["message"] != step.message || c["observedGeneration"] != step.generation {
			t.Errorf("condition %v, want %+v", c, step)
		}
		if all := conditionsOf(u); len(all) != 2 || all[0]["type"] != "istio.io/Accepted" || all[0]["extra"] == nil || u.Object["status"].(map[string]any)["validationMessages"] == nil {
			t.Errorf("status %v: others' parts are not as they were", u.Object["status"])
		}
	}
}

// Nothing is written that is there already, also by a writer that has just
// started; what others take away comes back. No writer runs by itself here: it
// could put back what is taken away before that is looked for in the cache.
func TestStatusIsWrittenOnChangeOnly(t *testing.T) {
	f := withPolicy(t, allowWeb)
	versions := f.watchPolicy()
	st := build.PolicyStatus{Kind: "AuthorizationPolicy", Namespace: "shop", Name: "p", Generation: 1, Enforced: true, Layer: "L4"}
	bring := func(s *Statuses) {
		t.Helper()
		if err := s.bring(t.Context(), &st); err != nil {
			t.Fatal(err)
		}
	}
	first, other := f.source.Statuses(), f.source.Statuses()
	bring(first)
	written := next(t, versions)
	f.awaitCached(func(u *unstructured.Unstructured) bool { return enforced(u) != nil })
	for _, s := range []*Statuses{first, other, other} {
		bring(s)
	}
	without := parse(t, allowWeb)
	if _, err := f.dynamic.Resource(policyResource(0, "v1")).Namespace("shop").UpdateStatus(t.Context(), without, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if u := next(t, versions); enforced(u) != nil {
		t.Errorf("written again although it was there: %v, then %v", enforced(written), enforced(u))
	}
	f.awaitCached(func(u *unstructured.Unstructured) bool { return enforced(u) == nil })
	bring(first)
	if u := next(t, versions); enforced(u) == nil {
		t.Error("not written again")
	}
}

// awaitCached polls: nothing tells that the cache has a policy.
func (f *fixture) awaitCached(wanted func(*unstructured.Unstructured) bool) {
	f.t.Helper()
	deadline, tick := time.After(patient), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if _, u := f.source.policy("AuthorizationPolicy", "shop", "p"); wanted(u) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			f.t.Fatal("the cache does not follow")
		}
	}
}

// Whoever writes in between is not written over.
func TestStatusConflict(t *testing.T) {
	f, s := statuses(t, allowWeb)
	versions := f.watchPolicy()
	conflicts := 0
	f.dynamic.PrependReactor("update", "authorizationpolicies", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "status" || conflicts > 0 {
			return false, nil, nil
		}
		conflicts++
		u := parse(t, withOthers)
		if err := f.dynamic.Tracker().Update(policyResource(0, "v1"), u, "shop"); err != nil {
			t.Error(err)
		}
		return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "authorizationpolicies"}, "p", nil)
	})
	s.Set([]build.PolicyStatus{{Kind: "AuthorizationPolicy", Namespace: "shop", Name: "p", Generation: 1, Enforced: true, Layer: "L4"}})
	if u := next(t, versions); enforced(u) != nil {
		t.Fatalf("the other's write has %v", enforced(u))
	}
	if u := next(t, versions); enforced(u) == nil || len(conditionsOf(u)) != 2 {
		t.Errorf("conditions %v, want the other's and ours", conditionsOf(u))
	}
}
