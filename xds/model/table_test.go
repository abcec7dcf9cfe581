package model_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/model/modeltest"
)

// all is everything that can be found in a snapshot of a mesh of modeltest, in
// the order in which it is found where that means something.
func all(s *model.Snapshot, n int) string {
	var b strings.Builder
	for i := range n {
		w, v := modeltest.Workload(i), modeltest.Service(i/modeltest.PerService)
		var members, named []string
		for e := range s.Endpoints(v.Key()) {
			members = append(members, e.Workload.UID+e.Workload.Node)
		}
		slices.Sort(members)
		for _, found := range slices.Concat(s.ServicesNamed(v.Hostname), s.ServicesAt("", v.Addresses[0].Prefix.Addr())) {
			named = append(named, fmt.Sprint(found.Key(), found.Ports))
		}
		at := ""
		if found := s.WorkloadAt("", w.Addresses[0]); found != nil {
			at = found.UID
		}
		fmt.Fprintln(&b, i, s.Workload(w.UID) != nil, at, s.Service(v.Key()) != nil, members, named)
	}
	fmt.Fprintln(&b, len(s.Workloads()), len(s.Services()))
	return b.String()
}

// some is an update of many resources, some of which move to another's address
// or out of their service.
func some(r *rand.Rand, n, changes int) (u model.Update) {
	for range changes {
		i := r.IntN(n)
		w, v := modeltest.Workload(i), modeltest.Service(i/modeltest.PerService)
		switch r.IntN(6) {
		case 0:
			u.RemovedAddresses = append(u.RemovedAddresses, w.UID)
			continue
		case 1:
			u.RemovedAddresses = append(u.RemovedAddresses, v.Key())
			continue
		case 2:
			v.Ports = []model.Port{{Service: uint16(1 + r.IntN(9)), Target: 1}}
			u.Services = append(u.Services, v)
			continue
		case 3:
			w.Addresses = modeltest.Workload(r.IntN(n)).Addresses
		case 4:
			w.Services = nil
		}
		w.Node = fmt.Sprint("node-", r.IntN(9))
		u.Workloads = append(u.Workloads, w)
	}
	return u
}

// An update of many resources leads where the same in many small ones does, and
// leaves the snapshot before as it was.
func TestLargeUpdates(t *testing.T) {
	const n = 600
	r := rand.New(rand.NewPCG(1, 2))
	large, small := model.NewSnapshot(), model.NewSnapshot()
	for step := range 20 {
		u := some(r, n, 300+r.IntN(900))
		before, next := all(large, n), large.Apply(u)
		for _, key := range u.RemovedAddresses {
			small = small.Apply(model.Update{RemovedAddresses: []string{key}})
		}
		for _, v := range u.Services {
			small = small.Apply(model.Update{Services: []*model.Service{v}})
		}
		for _, w := range u.Workloads {
			small = small.Apply(model.Update{Workloads: []*model.Workload{w}})
		}
		if all(large, n) != before {
			t.Fatalf("step %d: the snapshot before has changed", step)
		}
		large = next
		if got, want := all(large, n), all(small, n); got != want {
			t.Fatalf("step %d: at once\n%s\none by one\n%s", step, got, want)
		}
	}
}

// BenchmarkLargeUpdate is a whole mesh, from nothing, and all of it changed.
func BenchmarkLargeUpdate(b *testing.B) {
	const n = 70_000
	first, second := modeltest.Mesh(n), modeltest.Mesh(n)
	for _, w := range second.Workloads {
		w.Node = "another"
	}
	known := model.NewSnapshot().Apply(first)
	for name, f := range map[string]func(){
		"nothing": func() { model.NewSnapshot().Apply(first) }, "changed": func() { known.Apply(second) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}

// An update of few of many services costs what changes, however few workloads
// there are.
func TestFewOfManyServices(t *testing.T) {
	const few = 300
	services := func(n int) (u model.Update) {
		for i := range n {
			u.Services = append(u.Services, modeltest.Service(i))
		}
		return u
	}
	allocations := func(n int) float64 {
		mesh, update := model.NewSnapshot().Apply(services(n)), services(few)
		return testing.AllocsPerRun(3, func() { mesh.Apply(update) })
	}
	if small, large := allocations(4*few+4), allocations(40*few); large > 3*small {
		t.Errorf("of 40 times as many, the update takes %v allocations, and %v of four times", large, small)
	}
}
