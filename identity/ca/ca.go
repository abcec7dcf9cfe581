// Package ca is the certificate authority inside tacitd: it keeps a signing
// key in a [Store], signs the requests of nodes' proxies for the identities of
// the pods that they run, and replaces its root so that nobody notices.
//
// It speaks the certificate service of Istio. What does not belong here: which
// node is calling (identity/nodeauth) and which identities it may have, both
// of which the caller of this package says.
package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Config is what an authority has to know beside its key.
type Config struct {
	TrustDomain string
	// MaxTTL is the longest life of a certificate, by which the phases of a
	// rotation are measured; 0 means DefaultTTL.
	MaxTTL time.Duration
	// Settle is how much longer than that a phase lasts: until other
	// replicas have read the store, and, unless it is looked whether they
	// have (Look), proxies have the new roots.
	Settle time.Duration
	// Interval is the time between two looks at the store.
	Interval time.Duration
	Log      *zap.Logger // nil for none
}

// Authority signs certificates with what its store holds.
type Authority struct {
	store  Store
	config Config
	now    func() time.Time
	// longerUntil is as in Status, or in the past.
	longerUntil time.Time
	nodes       func(now time.Time) (all []Node, ok bool) // nil: see Look

	mu      sync.Mutex
	current *issuer
	changed chan struct{} // closed and replaced with current
	problem string        // the last one that the log was told of
}

// New opens the authority that a store holds.
func New(ctx context.Context, store Store, config Config) (*Authority, error) {
	if config.Log == nil {
		config.Log = zap.NewNop()
	}
	if config.MaxTTL == 0 {
		config.MaxTTL = DefaultTTL
	}
	state, err := store.Load(ctx)
	if err != nil {
		return nil, err
	}
	last, err := store.Published(ctx)
	if err != nil {
		return nil, fmt.Errorf("which rotation was the last: %w", err)
	}
	state = state.after(last.Rotation)
	a := &Authority{store: store, config: config, now: time.Now, changed: make(chan struct{})}
	a.longerUntil = a.lowered(last)
	if a.current, err = newIssuer(state, config.TrustDomain, a.now()); err != nil {
		return nil, err
	}
	return a, nil
}

// Roots are the certificates that peers are judged by, as PEM.
func (a *Authority) Roots() []byte { return encode(a.issuer().roots...) }

// NotAfter is when the signing certificate ends; nothing it signs lives longer.
func (a *Authority) NotAfter() time.Time { return a.issuer().signer.NotAfter }

// Changed returns a channel that is closed when next anything of the
// authority is another: its key, its roots, or the phase of a rotation.
func (a *Authority) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

func (a *Authority) issuer() *issuer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

// Run follows the store, and carries out the rotations that are asked for,
// until the context ends; it returns the context's error. What cannot be read
// or used changes nothing.
func (a *Authority) Run(ctx context.Context) error {
	tick := time.NewTicker(a.config.Interval)
	defer tick.Stop()
	for {
		err := a.look(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.report(err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// look follows the store once. A store that does not answer must not keep this
// replica from the next look: it would go on signing with a key that another one
// has replaced.
func (a *Authority) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, a.config.Interval)
	defer cancel()
	return a.follow(ctx)
}

// report tells the log of each problem once.
func (a *Authority) report(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	a.mu.Lock()
	news := text != a.problem
	a.problem = text
	a.mu.Unlock()
	switch {
	case news && err != nil:
		a.config.Log.Error("certificate authority: what was in force stays so", zap.Error(err))
	case news:
		a.config.Log.Info("certificate authority: no problem any more")
	}
}

// follow takes over what the store holds, and takes the next step of a
// rotation if there is one. The step is in the store before it is in force, so
// whoever starts again goes on from there.
func (a *Authority) follow(ctx context.Context) error {
	stored, err := a.store.Load(ctx)
	if err != nil {
		return err
	}
	state := stored.after(a.issuer().state.Rotation)
	if err := a.use(state); err != nil {
		return err
	}
	request, err := a.store.Requested(ctx)
	if err != nil {
		return fmt.Errorf("whether a rotation is asked for: %w", err)
	}
	next, err := a.next(a.issuer(), request)
	if err != nil {
		return err
	}
	if next == nil && state != stored && state.Fixed == "" {
		next = state
	}
	if next == nil {
		return nil
	}
	// Nothing is stored that could not be opened again.
	if _, err := newIssuer(next, a.config.TrustDomain, a.now()); err != nil {
		return fmt.Errorf("rotation of the root: %w", err)
	}
	switch err := a.store.Save(ctx, stored, next); {
	case errors.Is(err, ErrChanged):
		return nil // another replica was first, and is followed from now on
	case err != nil:
		return fmt.Errorf("rotation of the root: %w", err)
	}
	return a.use(next)
}

// use puts a state in force, if it is another and good.
func (a *Authority) use(state *State) error {
	before := a.issuer()
	if before.state.Equal(state) {
		return nil
	}
	fresh, err := newIssuer(state, a.config.TrustDomain, a.now())
	if err != nil {
		return fmt.Errorf("the new certificate authority is not used: %w", err)
	}
	a.mu.Lock()
	a.current = fresh
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	if fresh.same(before) {
		return nil // in another form
	}
	log := a.config.Log.With(zap.Stringer("signer", fresh.signer.Subject), zap.Time("not_after", fresh.signer.NotAfter), zap.Strings("roots", names(fresh.roots)))
	if phase := fresh.phase(); phase != before.phase() {
		if r := state.Rotation; r.Active() {
			log = log.With(zap.Time("until", r.Until))
		}
		log.Info("rotation of the root", zap.String("phase", string(phase)))
		if phase != Abandoned || fresh.signer.Equal(before.signer) {
			return nil
		}
	}
	log.Info("certificate authority replaced")
	a.warn(before, fresh)
	return nil
}

// warn says what a replacement from outside, unlike a rotation, may break.
func (a *Authority) warn(before, fresh *issuer) {
	for _, root := range before.roots {
		if !contains(fresh.roots, root) {
			a.config.Log.Warn("a root was taken away at once: peers refuse certificates under it as soon as they have the new roots",
				zap.Stringer("root", root.Subject), zap.Duration("certificates may live another", a.config.MaxTTL))
		}
	}
	if before.signer.Equal(fresh.signer) {
		return
	}
	for _, root := range fresh.roots {
		if contains(before.roots, root) {
			return
		}
	}
	a.config.Log.Warn("none of the new roots was handed out before: peers that do not have them yet refuse new certificates")
}

func contains(all []*x509.Certificate, c *x509.Certificate) bool {
	for _, have := range all {
		if have.Equal(c) {
			return true
		}
	}
	return false
}

func names(all []*x509.Certificate) (out []string) {
	for _, c := range all {
		out = append(out, c.Subject.String())
	}
	return out
}
