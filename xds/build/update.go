package build

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Result is the mesh at this moment. It goes through all of it.
func (m *Mesh) Result() Result {
	r := Result{
		Policies:   m.policies.result.Policies,
		Statuses:   m.Statuses(),
		Problems:   m.Problems(),
		Identities: map[string]map[model.Identity]bool{},
	}
	for _, e := range m.pods {
		if e.workload != nil {
			r.Workloads = append(r.Workloads, e.workload)
		}
	}
	for _, s := range m.slices {
		r.Workloads = slices.AppendSeq(r.Workloads, maps.Values(s.foreign))
	}
	for _, svc := range m.services {
		if svc.told != nil {
			r.Services = append(r.Services, svc.told)
		}
	}
	for node, ids := range m.permissions {
		for id := range ids {
			if !m.Permits(node, id) {
				continue
			}
			if r.Identities[node] == nil {
				r.Identities[node] = map[model.Identity]bool{}
			}
			r.Identities[node][id] = true
		}
	}
	sortBy(r.Workloads, workloadKey)
	sortBy(r.Services, (*model.Service).Key)
	return r
}

// Policies are those in force, by key.
func (m *Mesh) Policies() []*model.Policy { return m.policies.result.Policies }

// Counts is how much of everything there is.
func (m *Mesh) Counts() Counts { return m.counts }

// Problems are parts of objects other than policies that have no effect as
// written, by kind, namespace and name.
func (m *Mesh) Problems() []Problem {
	var out []Problem
	for key, errs := range m.problems {
		for _, err := range errs {
			out = append(out, Problem{key.kind, key.namespace, key.name, err})
		}
	}
	sortProblems(out)
	return out
}

func workloadKey(w *model.Workload) string { return w.UID }
func policyKey(p *model.Policy) string     { return p.Key() }

func sortBy[T any](list []T, key func(T) string) {
	slices.SortFunc(list, func(x, y T) int { return strings.Compare(key(x), key(y)) })
}

// sortUpdate makes the same changes the same update.
func sortUpdate(u *model.Update) {
	sortBy(u.Workloads, workloadKey)
	sortBy(u.Services, (*model.Service).Key)
	slices.Sort(u.RemovedAddresses)
}

// Since is the update that leads from an earlier result to this one; from nil,
// the whole of it.
func (r *Result) Since(before *Result) model.Update {
	u := model.Update{AddressesComplete: true, PoliciesComplete: true}
	if before == nil {
		before = &Result{}
	}
	u.Workloads, u.RemovedAddresses = changes(before.Workloads, r.Workloads, workloadKey)
	var gone []string
	u.Services, gone = changes(before.Services, r.Services, (*model.Service).Key)
	u.RemovedAddresses = append(u.RemovedAddresses, gone...)
	u.Policies, u.RemovedPolicies = changes(before.Policies, r.Policies, policyKey)
	return u
}

// changes compares two lists, both sorted by key.
func changes[T any](before, now []*T, key func(*T) string) (changed []*T, gone []string) {
	for len(before) > 0 || len(now) > 0 {
		switch {
		case len(now) == 0 || len(before) > 0 && key(before[0]) < key(now[0]):
			gone = append(gone, key(before[0]))
			before = before[1:]
		case len(before) == 0 || key(now[0]) < key(before[0]):
			changed = append(changed, now[0])
			now = now[1:]
		default:
			if !reflect.DeepEqual(before[0], now[0]) {
				changed = append(changed, now[0])
			}
			before, now = before[1:], now[1:]
		}
	}
	return changed, gone
}
