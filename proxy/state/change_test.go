package state

import (
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

// While an update is applied nobody waits for it, nor sees any of it.
func TestNobodyWaitsForAnUpdate(t *testing.T) {
	s := New()
	applying, goOn := make(chan struct{}), make(chan struct{})
	go s.change(func(now *model.Snapshot) *model.Snapshot {
		close(applying)
		<-goOn
		return now.Apply(model.Update{Workloads: []*model.Workload{{UID: "a"}}})
	})
	<-applying
	snapshot, changed := s.Watch()
	if snapshot.Generation() != 0 || s.Snapshot() != snapshot {
		t.Errorf("generation %d is visible before it is there", snapshot.Generation())
	}
	close(goOn)
	<-changed
	if s.Snapshot().Workload("a") == nil {
		t.Error("the update is not visible")
	}
}
