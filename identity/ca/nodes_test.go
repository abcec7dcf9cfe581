package ca

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"
)

// fleet is what the nodes of a mesh have told.
type fleet struct {
	nodes []Node
	known bool
}

func (f *fleet) look(time.Time) ([]Node, bool) { return f.nodes, f.known }

// judging is a node whose proxy knows tacitd by some roots, and whose pods judge
// peers by others.
func judging(name string, sets ...[]*x509.Certificate) Node {
	var judges Judges
	for _, set := range sets {
		digests := []Digest{}
		for _, c := range set {
			digests = append(digests, digest(c))
		}
		judges = append(judges, digests)
	}
	return Node{Name: name, Proxies: []Judges{judges}}
}

// and is a node with the proxies of both.
func (n Node) and(other Node) Node {
	n.Proxies = append(n.Proxies, other.Proxies...)
	return n
}

// distributing is a rotation whose first phase is over by the time alone.
func distributing(t *testing.T, request string, f *fleet) (a *Authority, store *memory, c *clock, old, both []*x509.Certificate) {
	t.Helper()
	store, c = newMemory(t)
	a = replica(t, store, c)
	a.Look(f.look)
	old = a.issuer().roots
	store.request = request
	follow(t, a)
	c.at = c.at.Add(phase)
	return a, store, c, old, a.issuer().roots
}

// The new root signs when every node has told that whoever judges by the old one
// there judges by both, or when people do not want to wait for the others.
func TestNodesHoldUpTheNewRoot(t *testing.T) {
	for name, c := range map[string]struct {
		nodes   func(old, both, foreign []*x509.Certificate) []Node
		unknown bool
		request string
		on      bool
		why     string // said of node b
	}{
		"all have it": {nodes: func(_, both, _ []*x509.Certificate) []Node {
			return []Node{judging("a", both, both), judging("b", both)}
		}, on: true},
		"there are no nodes": {nodes: func(_, _, _ []*x509.Certificate) []Node { return nil }, on: true},
		"a node knows tacitd by the old one": {nodes: func(old, both, _ []*x509.Certificate) []Node {
			return []Node{judging("a", both, both), judging("b", old, both)}
		}, why: "--root"},
		"pods of a node judge by the old one": {nodes: func(old, both, _ []*x509.Certificate) []Node {
			return []Node{judging("a", both, both), judging("b", both, both, old)}
		}, why: "is to be renewed"},
		"a node says nothing": {nodes: func(_, both, _ []*x509.Certificate) []Node {
			return []Node{judging("a", both), {Name: "b"}}
		}, why: "has not said"},
		"the file of --root cannot be read": {nodes: func(_, both, _ []*x509.Certificate) []Node {
			return []Node{judging("a", both), judging("b", nil, both)}
		}, why: "can read the file"},
		"a node knows tacitd by another root": {nodes: func(_, both, foreign []*x509.Certificate) []Node {
			return []Node{judging("a", both), judging("b", foreign, both)}
		}, why: "can read the file"},
		"the new proxy of a node has the old one": {nodes: func(old, both, _ []*x509.Certificate) []Node {
			return []Node{judging("a", both), judging("b", both).and(judging("b", old, both))}
		}, why: "--root"},
		"the proxy that drains has the old one": {nodes: func(old, both, _ []*x509.Certificate) []Node {
			return []Node{judging("a", both), judging("b", both, both, old).and(judging("b", both))}
		}, why: "is to be renewed"},
		"the proxy that drains has said nothing": {nodes: func(_, both, _ []*x509.Certificate) []Node {
			return []Node{judging("a", both), judging("b", both).and(judging("b"))}
		}, why: "has not said"},
		"both proxies of a node have it": {nodes: func(_, both, _ []*x509.Certificate) []Node {
			return []Node{judging("a", both).and(judging("a", both, both))}
		}, on: true},
		"pods have certificates of somebody else": {nodes: func(_, both, foreign []*x509.Certificate) []Node {
			return []Node{judging("b", both, foreign)}
		}, on: true},
		"the new one alone is there": {nodes: func(_, both, _ []*x509.Certificate) []Node {
			return []Node{judging("b", both[1:], both)}
		}, on: true},
		"which nodes there are is not known": {unknown: true, nodes: func(_, _, _ []*x509.Certificate) []Node { return nil }},
		"nodes are left behind": {nodes: func(old, _, _ []*x509.Certificate) []Node {
			return []Node{judging("b", old)}
		}, request: "1" + LeaveBehind, on: true},
		"nodes are left behind, before they are known": {unknown: true, request: "1" + LeaveBehind, nodes: func(_, _, _ []*x509.Certificate) []Node { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			if c.request == "" {
				c.request = "1"
			}
			f := &fleet{}
			a, store, _, old, both := distributing(t, c.request, f)
			_, foreign := must2(Generate("else.test"))
			f.known, f.nodes = !c.unknown, c.nodes(old, both, must(parseCertificates(foreign)))
			follow(t, a)
			if on := a.issuer().phase() == Overlap; on != c.on {
				t.Fatalf("the new root signs: %v, want %v", on, c.on)
			}
			said := store.state.Rotation.Nodes
			if c.on || c.unknown {
				if said != nil {
					t.Errorf("of nodes it is said: %+v", said)
				}
				return
			}
			if said == nil || said.Have != said.Of-1 || len(said.Behind) != 1 || said.Behind[0].Node != "b" || !strings.Contains(said.Behind[0].Why, c.why) {
				t.Fatalf("of nodes it is said: %+v", said)
			}
			if s := a.Status(); s.Rotation.Nodes == nil || s.Rotation.Nodes.Have != said.Have {
				t.Errorf("the status says %+v", s.Rotation.Nodes)
			}
			// Once b has it, too, the phase is over.
			f.nodes[len(f.nodes)-1] = judging("b", both)
			if follow(t, a); a.issuer().phase() != Overlap {
				t.Errorf("phase %s though all have the new root", a.issuer().phase())
			}
		})
	}
}

// No node begins a phase early for others.
func TestNodesDoNotHurryTheNewRoot(t *testing.T) {
	f := &fleet{known: true}
	a, _, c, _, both := distributing(t, "1", f)
	f.nodes = []Node{judging("a", both)}
	c.at = c.at.Add(-time.Second)
	if follow(t, a); a.issuer().phase() != Distribute {
		t.Errorf("phase %s before certificates of the old root alone have ended", a.issuer().phase())
	}
}

// People change their minds while the nodes hold up the rotation.
func TestNodesAreLeftBehindLater(t *testing.T) {
	f := &fleet{known: true}
	a, store, _, old, _ := distributing(t, "1", f)
	f.nodes = []Node{judging("a", old)}
	follow(t, a)
	store.request = "2" + LeaveBehind
	follow(t, a)
	if r := store.state.Rotation; r.Phase != Distribute || !r.LeaveBehind || r.Request != store.request {
		t.Fatalf("%+v", r)
	}
	if follow(t, a); a.issuer().phase() != Overlap {
		t.Errorf("phase %s", a.issuer().phase())
	}
}

// A node that never gets the new root does not let the old one end.
func TestNodesDoNotHoldUpForEver(t *testing.T) {
	f := &fleet{known: true}
	a, _, c, old, _ := distributing(t, "1", f)
	f.nodes = []Node{judging("a", old)}
	for _, step := range []struct {
		left time.Duration
		want Phase
	}{{phase + time.Second, Distribute}, {phase, Overlap}} {
		c.at = old[0].NotAfter.Add(-step.left)
		if follow(t, a); a.issuer().phase() != step.want {
			t.Errorf("%v before the end of the old root: phase %s, want %s", step.left, a.issuer().phase(), step.want)
		}
	}
}

// Of replicas, people see the word of the one that has heard from most nodes,
// and any of those that have heard from all goes on.
func TestReplicasHearDifferentNodes(t *testing.T) {
	all, none := &fleet{known: true}, &fleet{known: true}
	a, store, c, old, both := distributing(t, "1", all)
	b := replica(t, store, c)
	b.Look(none.look)
	all.nodes = []Node{judging("x", both), judging("y", old)}
	none.nodes = []Node{{Name: "x"}, {Name: "y"}}
	for range 3 {
		follow(t, b)
		follow(t, a)
		if p := store.state.Rotation.Nodes; p == nil || p.Have != 1 {
			t.Fatalf("of nodes it is said: %+v", p)
		}
		saves := store.saves
		follow(t, b)
		follow(t, a)
		if store.saves != saves {
			t.Fatalf("the replicas write in turn")
		}
	}
	c.at = c.at.Add(worse) // the other one may be gone
	if follow(t, b); store.state.Rotation.Nodes.Have != 0 {
		t.Errorf("of nodes it is said: %+v", store.state.Rotation.Nodes)
	}
	all.nodes[1] = judging("y", both)
	if follow(t, a); a.issuer().phase() != Overlap {
		t.Errorf("phase %s", a.issuer().phase())
	}
	if follow(t, b); b.issuer().phase() != Overlap {
		t.Errorf("phase %s at the other one", b.issuer().phase())
	}
}

// However many nodes are behind, the state stays small.
func TestManyNodesAreBehind(t *testing.T) {
	f := &fleet{known: true}
	a, store, _, _, both := distributing(t, "1", f)
	for n := range 1000 {
		f.nodes = append(f.nodes, Node{Name: fmt.Sprintf("node-%03d", 999-n)})
	}
	f.nodes = append(f.nodes, judging("ready", both))
	follow(t, a)
	if p := store.state.Rotation.Nodes; p == nil || p.Of != 1001 || p.Have != 1 || len(p.Behind) != maxBehind || p.Behind[0].Node != "node-000" {
		t.Errorf("of nodes it is said: %+v", p)
	}
}
