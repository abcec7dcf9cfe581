package build

import (
	"reflect"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Since is the update that leads from an earlier result to this one; from nil,
// the whole of it.
func (r *Result) Since(before *Result) model.Update {
	u := model.Update{AddressesComplete: true, PoliciesComplete: true}
	if before == nil {
		before = &Result{}
	}
	u.Workloads, u.RemovedAddresses = changes(before.Workloads, r.Workloads, func(w *model.Workload) string { return w.UID })
	var gone []string
	u.Services, gone = changes(before.Services, r.Services, (*model.Service).Key)
	u.RemovedAddresses = append(u.RemovedAddresses, gone...)
	u.Policies, u.RemovedPolicies = changes(before.Policies, r.Policies, (*model.Policy).Key)
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
