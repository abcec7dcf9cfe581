package identity_test

import (
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
)

// A source that renews when it wants is late only when that cannot be it.
func TestWhenRenewalIsDue(t *testing.T) {
	for name, test := range map[string]struct {
		opts []identity.Option
		life time.Duration
		due  time.Duration // of a life that has begun now
	}{
		"at half, when it is asked for":     {nil, 10 * time.Hour, 5 * time.Hour},
		"pushed":                            {[]identity.Option{identity.WithPushedRenewals()}, 10 * time.Hour, 5*time.Hour + 31*time.Minute},
		"pushed, of a life that is no time": {[]identity.Option{identity.WithPushedRenewals()}, 20 * time.Second, 15 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now().Truncate(time.Second)
			store, src := startStore(t, append(test.opts, identity.WithClock(func() time.Time { return now }))...)
			defer store.Acquire(identity.Subject{Identity: alice})()
			template := identitytest.Template(t, alice.String())
			template.NotBefore, template.NotAfter = now, now.Add(test.life)
			next(t, src).update(identitytest.NewCA(t).IssueTemplate(t, template))
			if got := store.All()[0].Renewal().Sub(now); got != test.due {
				t.Errorf("due in %v, want %v", got, test.due)
			}
		})
	}
}
