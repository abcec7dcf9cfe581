package main

import (
	"testing"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/identity/nodeauth"
	"github.com/tacit-mesh/tacit/internal/audit"
	"github.com/tacit-mesh/tacit/internal/audit/audittest"
	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/server"
)

// The beginning and the end of bypasses and revocations are recorded, once each,
// with who and why.
func TestRecordsAreAudited(t *testing.T) {
	log, records := audittest.New(t)
	m := newMesh(build.Settings{}, server.New(zap.NewNop(), nodeauth.Node), zap.NewNop())
	m.audit = log
	now := time.Now().Truncate(time.Second)
	b := &bypass.Bypass{Spec: bypass.Spec{Reason: "incident 12", By: "alice", Since: &metav1.Time{Time: now.Add(-time.Minute)}, Until: &metav1.Time{Time: now.Add(time.Hour)}}}
	b.Namespace, b.Name = "shop", "b"
	r := &kinds.RevokedIdentity{Spec: kinds.RevokedIdentitySpec{Identity: "spiffe://cluster.local/ns/shop/sa/web", By: "bob", Reason: "leaked"}}
	r.Namespace, r.Name = "tacit-system", "r"
	m.change(build.Changes{Set: []metav1.Object{b, r}}, nil)
	m.publish()
	m.publish()
	ended := b.DeepCopyObject().(*bypass.Bypass)
	ended.Spec.Until, ended.Spec.EndedBy = &metav1.Time{Time: now.Add(-10 * time.Second)}, "carol"
	m.change(build.Changes{Set: []metav1.Object{ended}, Gone: []metav1.Object{r}}, nil)
	m.publish()

	all := records()
	if len(all) != 4 {
		t.Fatalf("records: %+v", all)
	}
	for i, want := range []struct {
		event  string
		fields map[string]string
	}{
		{audit.EventBypass, map[string]string{"name": "shop/b", "in_force": "true", "by": "alice", "reason": "incident 12"}},
		{audit.EventRevocation, map[string]string{"name": "tacit-system/r", "in_force": "true", "by": "bob", "identity": r.Spec.Identity}},
		{audit.EventBypass, map[string]string{"name": "shop/b", "in_force": "false", "ended_by": "carol"}},
		{audit.EventRevocation, map[string]string{"name": "tacit-system/r", "in_force": "false", "says": "the object is gone"}},
	} {
		if all[i].Event != want.event {
			t.Errorf("record %d is %+v, want %s", i, all[i], want.event)
		}
		for key, value := range want.fields {
			if all[i].Fields[key] != value {
				t.Errorf("record %d: %s is %q, want %q", i, key, all[i].Fields[key], value)
			}
		}
	}
}
