package identity_test

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
)

// The pod that comes next does not wait for a source that is away.
func TestReleasedIsKeptForTheNextPod(t *testing.T) {
	const briefLife, longLife = time.Hour, 24 * time.Hour
	for _, test := range []struct {
		name      string
		life      time.Duration
		selectors string
		after     time.Duration
		kept      bool
	}{
		{"at once", briefLife, "", 0, true},
		{"before half of what is left", briefLife, "", 29 * time.Minute, true},
		{"after half of what is left", briefLife, "", 31 * time.Minute, false},
		{"of a long life, within the bound", longLife, "", 59 * time.Minute, true},
		{"of a long life, after the bound", longLife, "", 61 * time.Minute, false},
		{"of a single pod", longLife, "k8s:pod-uid:1", 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			ca := identitytest.NewCA(t)
			var clock clock
			clock.set(time.Now())
			store, src := startStore(t, identity.WithClock(clock.now))
			subject := identity.Subject{Identity: alice, Selectors: test.selectors}
			release := store.Acquire(subject)
			issue := func() *identity.Material {
				template := identitytest.Template(t, alice.String())
				template.NotAfter = clock.now().Add(test.life)
				return ca.IssueTemplate(t, template)
			}
			first := issue()
			sub := next(t, src)
			sub.update(first)
			release()
			<-sub.ctx.Done()
			if len(store.All()) != 0 {
				t.Errorf("still in use: %v", store.All())
			}
			clock.set(clock.now().Add(test.after))

			defer store.Acquire(subject)()
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // nothing is waited for
			if m, err := store.Get(ctx, subject); (m == first) != test.kept || (err == nil) != test.kept {
				t.Errorf("Get = %v, %v; want it kept: %t", m, err, test.kept)
			}
			// It is renewed as ever.
			newer := issue()
			next(t, src).update(newer)
			if m, err := store.Get(t.Context(), subject); m != newer {
				t.Errorf("Get = %v, %v; want the newer one", m, err)
			}
		})
	}
}

// Nobody has to ask for a key to be forgotten, and whoever exported it learns
// of that.
func TestKeptIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := identitytest.NewCA(t)
		store, src := startStore(t)
		release := store.Acquire(identity.Subject{Identity: alice})
		next(t, src).update(ca.Issue(t, alice)) // for an hour
		release()
		changed, began := store.Changed(), time.Now()
		exported := func() bool {
			data, err := store.Export()
			if err != nil {
				t.Fatal(err)
			}
			return !bytes.Contains(data, []byte(`"materials":null`))
		}
		if !exported() {
			t.Error("the next process would not have it")
		}
		<-changed
		if took := time.Since(began); took < 29*time.Minute || took > 31*time.Minute {
			t.Errorf("it was forgotten after %v, want half of an hour", took)
		}
		if exported() {
			t.Error("it is still exported")
		}
	})
}
