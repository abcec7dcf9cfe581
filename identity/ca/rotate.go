package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// phaseLength is as long as a certificate can live that was signed in the
// phase before, and somewhat longer.
func (a *Authority) phaseLength() time.Duration { return a.life() + a.config.Settle }

// life is how long a certificate can live.
func (a *Authority) life() time.Duration { return max(a.config.MaxTTL, MinTTL) }

// unsaidSettle is how much longer than certificates lived a phase lasted at most
// in versions that did not publish how long they live.
const unsaidSettle = 5 * time.Minute

// lowered is when the last certificates end that lived longer before, by what
// was published then; what they lived is lowered at the earliest now.
func (a *Authority) lowered(before Status) time.Time {
	until, lived := before.LongerUntil, before.Life
	if lived == 0 {
		lived = before.Phase - unsaidSettle
	}
	if lived > a.life() {
		if ends := a.now().Add(before.Phase); ends.After(until) {
			until = ends
		}
	}
	return until
}

// fixed says why the root cannot be replaced here, "" if it can.
func (i *issuer) fixed() string {
	switch {
	case i.state.Fixed != "":
		return i.state.Fixed
	case !isSelfSigned(i.signer):
		return fmt.Sprintf("%q, which signs, is an intermediate: rotate it where it was issued; tacitd follows. Put a new root beside the old one first, for as long as certificates live", i.signer.Subject)
	}
	return ""
}

// maxRequestID is how long the name of a request may be, in bytes.
const maxRequestID = 128

// next is the state that the time, or a request, asks for; nil if the present
// one is it. It depends on nothing but the state, so it does not matter who
// carries it out, nor how often that was begun.
func (a *Authority) next(i *issuer, request string) (*State, error) {
	r, now := i.state.Rotation, a.now()
	if len(request) > maxRequestID {
		request = "" // the state must stay small enough to be saved
	}
	switch {
	case r.Active() && i.replaced():
		return i.state.abandoned(r), nil
	case r.Active() && !now.Before(r.Until) && !a.heldUp(i, now):
		// Before all requests, which may come in any number.
		next, err := a.advance(i, now)
		if err == nil && request != "" {
			next.Rotation.request(request)
		}
		return next, err
	case r.Active() && request != "" && request != r.Request:
		// Whoever asks while one is under way is answered by that one.
		next := i.state.rotated(*r)
		next.Rotation.request(request)
		return next, nil
	case r.Active():
		return a.looked(i, now), nil
	case request == "" || r != nil && request == r.Request:
		return nil, nil
	}
	if reason := i.fixed(); reason != "" {
		return nil, errors.New("rotation of the root: " + reason)
	}
	return a.begin(i, request, now)
}

// begin makes the new root and hands it out beside the old one.
func (a *Authority) begin(i *issuer, request string, now time.Time) (*State, error) {
	key, root, err := generate(a.config.TrustDomain, now)
	if err != nil {
		return nil, fmt.Errorf("make a new root: %w", err)
	}
	fresh, err := parseCertificates(root)
	if err != nil {
		return nil, fmt.Errorf("make a new root: %w", err)
	}
	next := i.state.rotated(Rotation{
		Phase: Distribute, Began: now.UTC(), Until: a.until(now, i.signer),
		From: i.signer.Subject.String(), To: fresh[0].Subject.String(),
		Old: encode(i.signer), NextKey: key, Next: root,
	})
	next.Rotation.request(request)
	next.Chain = encode(i.signer)
	next.Roots = encode(append(slices.Clone(i.roots), fresh...)...)
	return next, nil
}

// replaced reports whether another CA signs than the rotation under way has put
// there: somebody has written over it.
func (i *issuer) replaced() bool {
	r := i.state.Rotation
	if r.Phase != Distribute {
		return i.signer.Subject.String() != r.To
	}
	old, err := parseCertificates(r.Old)
	return err == nil && !contains(old, i.signer)
}

// until is the end of a phase: at the latest everything that the old root has
// signed ends with it.
func (a *Authority) until(now time.Time, old ...*x509.Certificate) time.Time {
	until := now.Add(a.phaseLength())
	if a.longerUntil.After(until) {
		until = a.longerUntil
	}
	for _, root := range old {
		if root.NotAfter.Before(until) {
			until = root.NotAfter
		}
	}
	return until.UTC()
}

// advance begins the phase after the one that is over.
func (a *Authority) advance(i *issuer, now time.Time) (*State, error) {
	r := *i.state.Rotation
	switch r.Phase {
	case Distribute:
		old, err := parseCertificates(r.Old)
		if err != nil {
			return nil, fmt.Errorf("the old root in the state of the rotation: %w", err)
		}
		next := i.state.rotated(r)
		next.Key, next.Chain = r.NextKey, r.Next
		next.Rotation.NextKey, next.Rotation.Next, next.Rotation.Nodes = nil, nil, nil
		next.Rotation.Phase, next.Rotation.Until = Overlap, a.until(now, old...)
		return next, nil
	case Overlap:
		old, err := parseCertificates(r.Old)
		if err != nil {
			return nil, fmt.Errorf("the old root in the state of the rotation: %w", err)
		}
		next := i.state.rotated(r)
		next.Roots = encode(slices.DeleteFunc(slices.Clone(i.roots), func(c *x509.Certificate) bool { return contains(old, c) })...)
		next.Rotation.Old = nil
		next.Rotation.Phase, next.Rotation.Until = Retire, a.until(now)
		return next, nil
	case Retire:
		next := i.state.rotated(r)
		next.Rotation.Phase, next.Rotation.Until = Done, time.Time{}
		return next, nil
	}
	return nil, fmt.Errorf("the rotation is in phase %q, which this version does not know", r.Phase)
}

// after is the state with the last rotation that is known, if it knows none
// itself: somebody has replaced all of it. The request that was answered stays
// where it was made, and must not be answered again with their CA.
func (s *State) after(last *Rotation) *State {
	if s.Rotation != nil || last == nil {
		return s
	}
	return s.abandoned(last)
}

// abandoned is a copy in which a rotation is over since the CA was replaced.
func (s *State) abandoned(r *Rotation) *State {
	return s.rotated(Rotation{Request: r.Request, Phase: Abandoned, From: r.From, To: r.To, Began: r.Began})
}

// rotated is a copy with another rotation.
func (s *State) rotated(r Rotation) *State {
	next := *s
	next.Rotation = &r
	return &next
}
