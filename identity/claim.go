package identity

import (
	"context"
	"sync"
)

// Claim is a pod's claim to a certificate, for as long as it is there.
type Claim struct {
	store *Store

	mu      sync.Mutex
	subject Subject // whom the certificate is for
	release func()
}

// Claim acquires the certificate that is for the pod.
func (s *Store) Claim(pod Pod) *Claim {
	subject := s.Subject(pod)
	return &Claim{store: s, subject: subject, release: s.Acquire(subject)}
}

// Change says what is known of the pod now. Whoever waits for its certificate
// goes on waiting, for the one that is due to it by that. One that it has
// serves until then, as if the source had changed its mind.
func (c *Claim) Change(pod Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	subject := c.store.Subject(pod)
	if subject == c.subject {
		return
	}
	before, release := c.subject, c.release
	c.subject, c.release = subject, c.store.acquire(subject, before)
	release()
}

// Release gives the claim up.
func (c *Claim) Release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release()
}

// Get is [Store.Get] for the pod.
func (c *Claim) Get(ctx context.Context) (*Material, error) {
	for {
		subject := c.current()
		m, err := c.store.Get(ctx, subject)
		if err == nil || ctx.Err() != nil || c.current() == subject {
			return m, err
		}
	}
}

// Lack is [Store.Lack] for the pod.
func (c *Claim) Lack() error { return c.store.Lack(c.current()) }

func (c *Claim) current() Subject {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.subject
}
