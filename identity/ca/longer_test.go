package ca

import (
	"encoding/json"
	"testing"
	"time"
)

// A version with other phases, or one that published nothing but these, is no
// reason to wait: certificates lived no longer.
func TestOnlyLivesAreLowered(t *testing.T) {
	for name, tt := range map[string]struct {
		before Status
		waits  bool
	}{
		"nothing was published":               {},
		"phases were longer":                  {before: Status{Phase: life + time.Hour, Life: life}},
		"only the phase is known":             {before: Status{Phase: life + 5*time.Minute}},
		"certificates lived longer":           {before: Status{Phase: life + settle + time.Second, Life: life + time.Second}, waits: true},
		"only the phase is known, and longer": {before: Status{Phase: life + 6*time.Minute}, waits: true},
	} {
		m, _ := newMemory(t)
		m.published = must(json.Marshal(tt.before))
		a := must(New(t.Context(), m, Config{TrustDomain: "cluster.local", MaxTTL: life, Settle: settle, Interval: time.Hour}))
		if got := !a.Status().LongerUntil.IsZero(); got != tt.waits {
			t.Errorf("%s: waits until %v, want it to wait: %v", name, a.Status().LongerUntil, tt.waits)
		}
	}
}

// After --max-certificate-ttl was lowered, a rotation waits for the certificates
// from before, however often tacitd has been restarted meanwhile.
func TestLifeOfCertificatesIsLowered(t *testing.T) {
	m, c := newMemory(t)
	const day = 24 * time.Hour
	lives := func(ttl time.Duration) *Authority {
		t.Helper()
		a := must(New(t.Context(), m, Config{TrustDomain: "cluster.local", MaxTTL: ttl, Settle: settle, Interval: time.Hour}))
		m.publish(t, a)
		return a
	}
	lives(day)
	lowered := time.Now()
	a := lives(life)
	longest := a.Status().LongerUntil
	if longest.Before(lowered.Add(day+settle).Truncate(time.Second)) || longest.After(time.Now().Add(day+settle)) || a.Status().Phase != phase {
		t.Fatalf("the longest life ends at %v, of %+v", longest, a.Status())
	}
	for range 3 {
		if a = lives(life); !a.Status().LongerUntil.Equal(longest) {
			t.Fatalf("after a restart the longest life ends at %v, want %v", a.Status().LongerUntil, longest)
		}
	}
	a.now = func() time.Time { return c.at }
	m.request = "1"
	if r := follow(t, a).issuer().state.Rotation; r.Phase != Distribute || !r.Until.Equal(longest) {
		t.Errorf("phase %s until %v, want the end of the longest life %v", r.Phase, r.Until, longest)
	}
	c.at = longest
	if r := follow(t, a).issuer().state.Rotation; r.Phase != Overlap || !r.Until.Equal(longest.Add(phase)) {
		t.Errorf("phase %s until %v, want that of today's life", r.Phase, r.Until)
	}
	if until := a.Status().LongerUntil; !until.IsZero() {
		t.Errorf("told of what is over: %v", until)
	}
	if a = lives(2 * day); a.until(c.at).Before(c.at.Add(2 * day)) {
		t.Error("a longer life does not count at once")
	}
}
