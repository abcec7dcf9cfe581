package ca

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"time"
)

// What an authority has in tacitd's namespace of a cluster: its state, and what
// is published of it.
const (
	Secret    = "tacit-ca"
	ConfigMap = "tacit-ca-root"
	// Keys of the ConfigMap: the roots, PEM, and a Status.
	RootsKey  = "root-cert.pem"
	StatusKey = "ca-status.json"
	// RequestAnnotation of the ConfigMap asks for a rotation; its value is
	// the request's id.
	RequestAnnotation = "tacit.mesh/rotate-root"
)

// ErrChanged is that a store holds something else than it did when its state
// was read.
var ErrChanged = errors.New("the certificate authority was changed by another program meanwhile")

// Store keeps an authority, and takes requests for rotations.
type Store interface {
	// Load returns what is kept.
	Load(ctx context.Context) (*State, error)
	// Save puts next in the place of before, whole, or returns ErrChanged if
	// that is not what is kept any more.
	Save(ctx context.Context, before, next *State) error
	// Requested is the id of the newest request for a rotation, "" if there
	// was none yet.
	Requested(ctx context.Context) (string, error)
	// Published is what people were told last, zero if that was nothing: it
	// outlives a state that somebody replaces whole.
	Published(ctx context.Context) (Status, error)
}

// State is everything that an authority is.
type State struct {
	// Key, in PKCS #8 or SEC 1, and the certificates: Chain begins with the
	// one of Key, followed by those above it; Roots are what peers are judged
	// by. Without Roots, those are meant in Chain that signed themselves. All
	// of it is PEM.
	Key   []byte `json:"key,omitempty"`
	Chain []byte `json:"chain,omitempty"`
	Roots []byte `json:"roots,omitempty"`
	// Fixed says why tacitd may not write here, and so not rotate; "" if it may.
	Fixed string `json:"-"`
	// Rotation is the last one, nil if there was none.
	Rotation *Rotation `json:"rotation,omitempty"`
}

// Equal reports whether both hold the same.
func (s *State) Equal(other *State) bool {
	return bytes.Equal(s.Key, other.Key) && bytes.Equal(s.Chain, other.Chain) && bytes.Equal(s.Roots, other.Roots) &&
		s.Fixed == other.Fixed && s.Rotation.equal(other.Rotation)
}

// Phase is how far a rotation is. In each, everybody accepts what anybody
// presents.
type Phase string

// The phases, in their order.
const (
	// Distribute: the new root is handed out beside the old one, which still
	// signs, until every certificate in use came with both, and every node
	// has said that it has both.
	Distribute Phase = "distribute"
	// Overlap: the new root signs; the old one is handed out until the last
	// certificate that it signed has ended.
	Overlap Phase = "overlap"
	// Retire: the old root is not handed out any more, and forgotten by each
	// proxy as it renews its certificates.
	Retire Phase = "retire"
	// Done: nobody knows the old root any more.
	Done Phase = "done"
	// Abandoned: somebody replaced the CA meanwhile, and what they put there
	// counts.
	Abandoned Phase = "abandoned"
)

// Rotation is the replacement of a root by a new one.
type Rotation struct {
	Request string    `json:"request"` // that it answers
	Phase   Phase     `json:"phase"`
	From    string    `json:"from"` // the name of the old root
	To      string    `json:"to"`   // the name of the new root
	Began   time.Time `json:"began"`
	Until   time.Time `json:"until,omitzero"` // the end of the phase, at the earliest
	// Nodes are those that have the new root, while it is distributed; nil
	// if they are not looked at. With LeaveBehind they are not waited for.
	Nodes       *Progress `json:"nodes,omitempty"`
	LeaveBehind bool      `json:"leaveBehind,omitempty"`
	// Old is the old root, PEM, until it is retired; NextKey and Next are the
	// new one's, until it signs.
	Old     []byte `json:"old,omitempty"`
	NextKey []byte `json:"nextKey,omitempty"`
	Next    []byte `json:"next,omitempty"`
}

// Active reports whether the rotation is under way.
func (r *Rotation) Active() bool { return r != nil && r.Phase != Done && r.Phase != Abandoned }

func (r *Rotation) equal(other *Rotation) bool {
	if r == nil || other == nil {
		return r == other
	}
	a, b := *r, *other
	same := a.Began.Equal(b.Began) && a.Until.Equal(b.Until)
	a.Began, a.Until, b.Began, b.Until = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	return same && reflect.DeepEqual(a, b)
}

// Status is what people and other programs may know of an authority.
type Status struct {
	Signer Root   `json:"signer"`
	Roots  []Root `json:"roots"`
	// Fixed says why the root cannot be rotated by tacitd; "" if it can.
	Fixed string `json:"fixed,omitempty"`
	// Phase is how long a phase of a rotation lasts.
	Phase time.Duration `json:"phaseNanoseconds"`
	// Life is how long a certificate can live.
	Life time.Duration `json:"lifeNanoseconds,omitempty"`
	// LongerUntil is when the last certificates end that were signed while they
	// lived longer; zero if there are none.
	LongerUntil time.Time `json:"longerUntil,omitzero"`
	// Rotation is the last one, without keys.
	Rotation *Rotation `json:"rotation,omitempty"`
}

// PublishedStatus reads a status as JSON. What is none tells nothing: it is
// about to be written anew.
func PublishedStatus(text []byte) (s Status) {
	if json.Unmarshal(text, &s) != nil {
		return Status{}
	}
	return s
}

// Root is a certificate, for people.
type Root struct {
	Name     string    `json:"name"`
	NotAfter time.Time `json:"notAfter"`
}

// Status is how the authority is now.
func (a *Authority) Status() Status {
	i := a.issuer()
	s := Status{
		Signer: Root{i.signer.Subject.String(), i.signer.NotAfter.UTC()},
		Fixed:  i.fixed(), Phase: a.phaseLength(), Life: a.life(),
	}
	for _, c := range i.roots {
		s.Roots = append(s.Roots, Root{c.Subject.String(), c.NotAfter.UTC()})
	}
	if a.longerUntil.After(a.now()) {
		s.LongerUntil = a.longerUntil.UTC()
	}
	if r := i.state.Rotation; r != nil {
		public := *r
		public.Old, public.NextKey, public.Next = nil, nil, nil
		s.Rotation = &public
	}
	return s
}
