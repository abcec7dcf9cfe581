package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tacit-mesh/tacit/sight/hour"
	"github.com/tacit-mesh/tacit/sight/uses"
	"github.com/tacit-mesh/tacit/xds/api/sight"
	"github.com/tacit-mesh/tacit/xds/model"
)

// remembering is a tacitd whose mesh has policies, and that was told that some of
// them have just decided about something.
func remembering(ready bool, inForce []string, used ...string) *observed {
	u := model.Update{PoliciesComplete: ready, AddressesComplete: true}
	for _, name := range inForce {
		u.Policies = append(u.Policies, &model.Policy{Name: name, Namespace: "shop", Scope: model.ScopeNamespace, Action: model.ActionDeny, Rules: []model.Rule{{}}})
	}
	mesh := model.NewSnapshot().Apply(u)
	s := &observed{hour: hour.New(), mesh: func() *model.Snapshot { return mesh }, log: zap.NewNop()}
	summary := &sight.Summary{Sequence: 1}
	for _, name := range used {
		summary.Uses = append(summary.Uses, &sight.Use{Policy: "shop/" + name, Last: time.Now().Unix()})
	}
	s.hour.Take("node-a", summary, time.Now())
	return s
}

// once lets it keep what it knows one time.
func (s *observed) once(t *testing.T, keep keeper) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.remember(ctx, keep, time.Hour, s.log); !errors.Is(err, context.Canceled) {
		t.Errorf("remember: %v", err)
	}
}

// When a policy was last of use outlives tacitd and the proxies, whatever it is
// kept in; what is of no use for a week is told in text and as metrics.
func TestUsesAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses.json")
	client := fake.NewClientset()
	for name, keep := range map[string]keeper{"file": inFile(path), "ConfigMap": inConfigMap(client, "tacit-system")} {
		long := time.Now().Add(-9 * 24 * time.Hour)
		kept, err := json.Marshal(map[string]uses.Use{"shop/used": {Since: long}, "shop/never": {Since: long}, "shop/gone": {Since: long}})
		if err != nil {
			t.Fatal(err)
		}
		if err := keep(t.Context(), func(string) (string, error) { return string(kept), nil }); err != nil {
			t.Fatal(err)
		}
		remembering(false, nil).once(t, keep) // knows no policy yet, so it forgets none
		remembering(true, []string{"used", "never", "new"}, "used").once(t, keep)
		after := remembering(true, []string{"used", "never", "new"})
		after.once(t, keep)
		week := after.coverage(time.Now()).Week
		if week == nil || !slices.Equal(week.Unused, []string{"shop/never"}) || week.Since.After(long) {
			t.Errorf("%s: of no use for a week: %+v", name, week)
		}
		families, err := after.metrics()
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range families {
			if f.GetName() == "tacit_coverage_policies_unused_for_a_week" {
				found = f.GetMetric()[0].GetGauge().GetValue() == 1
			}
		}
		if !found {
			t.Errorf("%s: the metrics do not have it: %v", name, families)
		}
	}
	text, err := os.ReadFile(path)
	object, errObject := client.CoreV1().ConfigMaps("tacit-system").Get(t.Context(), uses.ConfigMap, metav1.GetOptions{})
	if err := errors.Join(err, errObject); err != nil {
		t.Fatal(err)
	}
	for _, kept := range []string{string(text), object.Data[uses.Key]} {
		if strings.Contains(kept, "gone") || !strings.Contains(kept, "shop/new") {
			t.Errorf("kept is %s", kept)
		}
	}
	// What somebody else has written is no reason to stop.
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	remembering(true, []string{"used"}).once(t, inFile(path))
	if text, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(text), `{"shop/used":`) {
		t.Errorf("written anew is %s, %v", text, err)
	}
	if c := remembering(true, []string{"used"}).coverage(time.Now()); c.Week != nil {
		t.Errorf("nothing is kept, and %+v known", c.Week)
	}
}
