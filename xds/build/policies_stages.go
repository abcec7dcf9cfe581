package build

import (
	"maps"
	"reflect"
	"slices"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Stages splits the way from an earlier result to this one into updates of one
// kind of resource each, to be sent one after the other. What one object's
// change denies or allows both before and after, is so at every stage:
//
//  1. labels that new conditions will ask for,
//  2. policies that are new, which no workload names yet,
//  3. workloads, as far as their policies have not changed,
//  4. policies that changed, and that no workload names which they no longer
//     cover or do not cover yet,
//  5. workloads with all of their policies,
//  6. the removal of policies, which nobody names any more,
//  7. the removal of labels that no condition asks for any more.
//
// Stages without content are left out. From nil, all policies come before all
// workloads.
func (r *Result) Stages(before *Result) []model.Update {
	u := r.Since(before)
	if before == nil {
		before = &Result{}
	}
	s := stager{
		was: index(before.Workloads), sent: index(before.Workloads), now: u.Workloads,
		moved: map[string]bool{}, widened: map[string]bool{},
	}
	fresh, changed := s.split(before.Policies, u.Policies)
	stages := []model.Update{
		{Workloads: s.stage(s.withNewLabels)},
		{Policies: fresh},
		{Workloads: s.stage(s.withSettledPolicies), Services: u.Services, RemovedAddresses: u.RemovedAddresses, AddressesComplete: true},
		{Policies: changed},
		{Workloads: s.stage(s.withOldLabels)},
		{RemovedPolicies: u.RemovedPolicies},
		{Workloads: s.stage(func(_, now *model.Workload) *model.Workload { return now })},
	}
	for i := 1; i < len(stages); i++ {
		stages[i].PoliciesComplete = true
	}
	stages = slices.DeleteFunc(stages, empty)
	if len(stages) == 0 {
		return []model.Update{{AddressesComplete: true, PoliciesComplete: true}}
	}
	stages[len(stages)-1].AddressesComplete = true
	return stages
}

func empty(u model.Update) bool {
	return len(u.Workloads)+len(u.Services)+len(u.Policies)+len(u.RemovedAddresses)+len(u.RemovedPolicies) == 0
}

func index(workloads []*model.Workload) map[string]*model.Workload {
	out := make(map[string]*model.Workload, len(workloads))
	for _, w := range workloads {
		out[w.UID] = w
	}
	return out
}

// stager makes the versions of the workloads that change.
type stager struct {
	was     map[string]*model.Workload // by UID
	sent    map[string]*model.Workload // their last versions
	now     []*model.Workload
	moved   map[string]bool // keys of changed policies that had a selector
	widened map[string]bool // those of them that have none any more
}

// split tells policies that are new from those that changed.
func (s *stager) split(before, policies []*model.Policy) (fresh, changed []*model.Policy) {
	known := make(map[string]*model.Policy, len(before))
	for _, p := range before {
		known[p.Key()] = p
	}
	for _, p := range policies {
		was := known[p.Key()]
		if was == nil {
			fresh = append(fresh, p)
			continue
		}
		changed = append(changed, p)
		if was.Scope == model.ScopeSelector {
			s.moved[p.Key()] = true
			s.widened[p.Key()] = p.Scope != model.ScopeSelector
		}
	}
	return fresh, changed
}

// stage is what to send so that receivers have these versions; a version may
// be nil for a workload that must wait.
func (s *stager) stage(version func(was, now *model.Workload) *model.Workload) (out []*model.Workload) {
	for _, now := range s.now {
		v := version(s.was[now.UID], now)
		if v != nil && !reflect.DeepEqual(v, s.sent[now.UID]) {
			s.sent[now.UID] = v
			out = append(out, v)
		}
	}
	return out
}

func (s *stager) withNewLabels(was, now *model.Workload) *model.Workload {
	if was == nil {
		return nil
	}
	return relabel(was, now.Labels, was.Labels)
}

// withSettledPolicies does not name a changed policy that newly selects the
// workload, and still names one that is about to cover it without a selector.
func (s *stager) withSettledPolicies(was, now *model.Workload) *model.Workload {
	var old []string
	if was != nil {
		old = was.Policies
	}
	settled := slices.DeleteFunc(slices.Clone(now.Policies), func(key string) bool {
		return s.moved[key] && !slices.Contains(old, key)
	})
	waits := len(settled) < len(now.Policies)
	for _, key := range old {
		if s.widened[key] && !slices.Contains(settled, key) {
			settled = append(settled, key)
		}
	}
	switch {
	case slices.Equal(settled, now.Policies):
		return s.withOldLabels(was, now)
	case waits && was == nil:
		return nil
	}
	w := *s.withOldLabels(was, now)
	w.Policies = slices.Sorted(slices.Values(settled))
	return &w
}

func (s *stager) withOldLabels(was, now *model.Workload) *model.Workload {
	if was == nil {
		return now
	}
	return relabel(now, was.Labels, now.Labels)
}

// relabel gives w both sets of labels; where both have a key, the second counts.
func relabel(w *model.Workload, first, second map[string]string) *model.Workload {
	labels := maps.Clone(first)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, second)
	if maps.Equal(labels, w.Labels) {
		return w
	}
	out := *w
	out.Labels = labels
	return &out
}
