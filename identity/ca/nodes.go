package ca

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Node is a node as its proxies have told of it lately.
type Node struct {
	Name string
	// Proxies are the one that is active, and those that drain.
	Proxies []Judges
}

// Judges are the digests of the roots that a proxy knows tacitd by, and then of
// each set of roots that pods of its node judge peers by. There are none if it
// has not said so.
type Judges [][]Digest

// Digest is the SHA-256 of a certificate.
type Digest = [sha256.Size]byte

// Progress is how many nodes have the new root of a rotation.
type Progress struct {
	Have int `json:"have"`
	Of   int `json:"of"`
	// Behind are the first of those that do not have it.
	Behind []Behind `json:"behind,omitempty"`
	At     int64    `json:"at"` // when this was so, in seconds since 1970
}

// Behind is a node that does not have the new root, and why that is thought.
type Behind struct {
	Node string `json:"node"`
	Why  string `json:"why"`
}

const (
	// maxBehind is how many nodes are named.
	maxBehind = 20
	// worse is for how long another replica's word counts that has heard from
	// more nodes.
	worse = time.Minute
)

// LeaveBehind at the end of a request has the rotation go on without nodes
// that do not have the new root.
const LeaveBehind = "/leave-behind"

// Look has rotations wait for all nodes to have the new root. nodes are those of
// the mesh; ok is false while they are not known. It is called before Run, if
// at all: else what nodes have is left to the time.
func (a *Authority) Look(nodes func(now time.Time) (all []Node, ok bool)) { a.nodes = nodes }

// progress is how many nodes have the new root, nil if that is not known.
func (a *Authority) progress(i *issuer, now time.Time) *Progress {
	r := i.state.Rotation
	fresh, err := parseCertificates(r.Next)
	if err != nil || len(fresh) == 0 {
		return nil
	}
	nodes, ok := a.nodes(now)
	if !ok {
		return nil
	}
	p := &Progress{Of: len(nodes), At: now.Unix()}
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	for _, n := range nodes {
		switch why := n.lacks(digest(i.signer), digest(fresh[0])); {
		case why == "":
			p.Have++
		case len(p.Behind) < maxBehind:
			p.Behind = append(p.Behind, Behind{n.Name, why})
		}
	}
	return p
}

func digest(c *x509.Certificate) Digest { return sha256.Sum256(c.Raw) }

// lacks says why a node is not ready for the new root to sign; "" means that it
// is. A proxy that drains holds it up as any other, until it is done.
func (n *Node) lacks(old, fresh Digest) string {
	if len(n.Proxies) == 0 {
		return notSaid
	}
	for _, p := range n.Proxies {
		if why := p.lack(old, fresh); why != "" {
			return why
		}
	}
	return ""
}

const notSaid = "its proxy has not said which roots it has: see that it runs, in this version, and not with --flows=0"

// lack says why a proxy is not ready: it must know tacitd by the new root, and
// whichever pod judges by the old one must judge by both.
func (j Judges) lack(old, fresh Digest) string {
	if len(j) == 0 {
		return notSaid
	}
	for i, set := range j {
		hasOld, hasFresh := slices.Contains(set, old), slices.Contains(set, fresh)
		switch {
		case hasFresh:
		case i == 0 && hasOld:
			return "its proxy knows tacitd by the old root alone: bring the new one to the file of its --root"
		case i == 0:
			return "its proxy knows tacitd by no root of this rotation: see that it can read the file of its --root, and bring the new one to it"
		case hasOld:
			return "a certificate there came with the old root alone, and is to be renewed"
		}
	}
	return ""
}

// heldUp reports whether the new root may not sign yet for nodes that do not
// have it. They cannot hold it up until the old one is about to end.
func (a *Authority) heldUp(i *issuer, now time.Time) bool {
	r := i.state.Rotation
	if a.nodes == nil || r.Phase != Distribute || !now.Before(i.signer.NotAfter.Add(-a.phaseLength())) {
		return false
	}
	p := a.progress(i, now)
	switch {
	case p == nil:
		return true
	case p.Have == p.Of:
		return false
	case r.LeaveBehind:
		a.config.Log.Warn("rotation of the root: going on without nodes that do not have the new one", zap.Int("have it", p.Have), zap.Int("of", p.Of), zap.Any("behind", p.Behind))
	}
	return !r.LeaveBehind
}

// looked is the state with what is seen of the nodes now, nil if it is the same
// or another replica has heard from more of them.
func (a *Authority) looked(i *issuer, now time.Time) *State {
	r := i.state.Rotation
	if a.nodes == nil || r.Phase != Distribute {
		return nil
	}
	p := a.progress(i, now)
	switch last := r.Nodes; {
	case p == nil, last != nil && last.same(p):
		return nil
	case last != nil && p.Have < last.Have && now.Sub(time.Unix(last.At, 0)) < worse:
		return nil
	}
	next := i.state.rotated(*r)
	next.Rotation.Nodes = p
	return next
}

func (p *Progress) same(other *Progress) bool {
	a, b := *p, *other
	a.At, b.At = 0, 0
	return reflect.DeepEqual(a, b)
}

// request notes one that asks for the rotation under way.
func (r *Rotation) request(id string) {
	r.Request = id
	r.LeaveBehind = r.LeaveBehind || strings.HasSuffix(id, LeaveBehind)
}
