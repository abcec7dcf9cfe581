package main

import (
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/identity/nodeauth"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/server"
)

// A revocation ends by itself, without any news from the source.
func TestRevocationsEnd(t *testing.T) {
	f := newFixture(t)
	defer f.start("127.0.0.1:0")()
	s := f.connect()
	s.until(t, "the manifests", func(s *model.Snapshot) bool { return s.AddressesReady() && s.PoliciesReady() })
	write := func(until time.Time) {
		f.write("manifests/revoked.yaml", fmt.Sprintf(`
apiVersion: policy.tacit.mesh/v1alpha1
kind: RevokedIdentity
metadata: {name: web, namespace: tacit-system}
spec: {identity: "spiffe://cluster.local/ns/shop/sa/web", until: %q}
`, until.UTC().Format(time.RFC3339)))
	}
	revoked := func(s *model.Snapshot) bool {
		p, _ := s.Policy("tacit-system/revoked_identity_web")
		return p != nil
	}
	write(time.Now().Add(time.Hour))
	s.until(t, "the revocation", revoked)
	end := time.Now().Add(3 * time.Second).Truncate(time.Second)
	write(end)
	s.until(t, "its end", func(s *model.Snapshot) bool { return !revoked(s) })
	if time.Now().Before(end) {
		t.Errorf("it ended before %v", end)
	}
}

// A clock that went ahead, and was set right, ends nothing for good.
func TestClockSetBack(t *testing.T) {
	log := zap.NewNop()
	m := newMesh(build.Settings{}, server.New(log, nodeauth.Node), log)
	until := time.Now().Add(time.Hour).Round(0)
	revocation := &kinds.RevokedIdentity{}
	revocation.Namespace, revocation.Name = "tacit-system", "web"
	revocation.Spec.Identity, revocation.Spec.Until = "spiffe://cluster.local/ns/shop/sa/web", &metav1.Time{Time: until}
	m.change(build.Changes{Set: []metav1.Object{revocation}}, nil)
	inForce := func() bool { return len(m.build.Policies()) > 0 }
	if !inForce() {
		t.Fatal("it is not in force at first")
	}
	if m.advance(until.Add(time.Minute)); inForce() {
		t.Error("it does not end")
	}
	if m.advance(until.Add(-time.Minute)); !inForce() {
		t.Error("the clock was set back before its end, and it is not in force")
	}
	if m.advance(until); inForce() {
		t.Error("it does not end the second time")
	}
}
