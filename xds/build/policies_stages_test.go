package build

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/xds/model"
)

// outline says what is in each stage, and which lists are complete with it.
func outline(stages []model.Update) (out []string) {
	for _, u := range stages {
		text := ""
		for _, p := range u.Policies {
			text += " +" + p.Name
		}
		for _, key := range u.RemovedPolicies {
			text += " -" + key
		}
		for _, w := range u.Workloads {
			text += fmt.Sprintf(" %s%v%d", w.UID, w.Policies, len(w.Labels))
		}
		for _, key := range u.RemovedAddresses {
			text += " -" + key
		}
		out = append(out, fmt.Sprint(u.PoliciesComplete, u.AddressesComplete, text))
	}
	return out
}

func TestStages(t *testing.T) {
	selector := func(name string, action model.Action) *model.Policy {
		return &model.Policy{Namespace: "a", Name: name, Scope: model.ScopeSelector, Action: action}
	}
	workload := func(uid string, labels int, policies ...string) *model.Workload {
		w := &model.Workload{UID: uid, Policies: policies}
		for i := range labels {
			if w.Labels == nil {
				w.Labels = map[string]string{}
			}
			w.Labels[fmt.Sprint(i)] = ""
		}
		return w
	}
	first := &Result{
		Policies:  []*model.Policy{selector("changed", 0), selector("gone", 0)},
		Workloads: []*model.Workload{workload("idle", 0), workload("leaves", 0, "a/changed", "a/gone"), workload("takes", 0)},
	}
	second := &Result{
		Policies:  []*model.Policy{selector("changed", 1), selector("new", 0)},
		Workloads: []*model.Workload{workload("idle", 0), workload("leaves", 1, "a/new"), workload("takes", 0, "a/changed", "a/new"), workload("young", 0, "a/changed")},
	}
	tests := []struct {
		name        string
		before, now *Result
		want        []string
	}{
		{"an empty mesh", nil, &Result{}, []string{"true true"}},
		{"from nothing", nil, first, []string{
			"true false +changed +gone",
			"true true idle[]0 leaves[a/changed a/gone]0 takes[]0",
		}},
		{"a change of everything", first, second, []string{
			"false false leaves[a/changed a/gone]1",
			"true false +new",
			"true true leaves[a/new]1 takes[a/new]0",
			"true false +changed",
			"true false takes[a/changed a/new]0 young[a/changed]0",
			"true true -a/gone",
		}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, outline(tt.now.Stages(tt.before))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
