// Package hour keeps what the nodes' proxies have told of the last hour: who
// talked to whom, minute by minute, and the last denials of each workload.
//
// Everything is bounded, whatever nodes say: the pairs of a minute, beyond which
// they count together as others; the denials that are kept of a workload; the
// length of every text. A minute that is over is packed. What does not belong
// here: how proxies come to their sums (sight/report), and what is made of all
// this (sight/traffic, sight/page).
package hour

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/api/sight"
)

// Length is how far back it goes.
const Length = time.Hour

// Bounds on what is kept.
const (
	maxNodes        = 8192
	maxPairs        = 16384 // of a minute, both directions counted
	maxParties      = 4096  // with denials
	maxDenials      = 16    // of a party
	maxCertificates = 512   // of a node
	maxUses         = 4096  // policies
	maxProcesses    = 16    // of a node
	maxRoots        = 64    // in a set, and sets of a node
)

// openMinutes are those that may still be told of: the present one, and those
// before it, for clocks that differ and connections that were lost.
const openMinutes = 3

// strangeFor is how long a policy that is not known is remembered.
const strangeFor = 10 * time.Minute

// Hour remembers. Its methods may be called from any goroutine.
type Hour struct {
	mu      sync.Mutex
	open    []*minute // oldest first
	packed  []packed  // oldest first
	nodes   map[string]*node
	denials map[flows.Party]*ring
	uses    map[string]time.Time
	strange map[string]time.Time // since when Uses leaves a policy out
	news    chan struct{}        // closed when something was taken
}

// New makes an empty hour.
func New() *Hour {
	return &Hour{nodes: map[string]*node{}, denials: map[flows.Party]*ring{}, uses: map[string]time.Time{}, strange: map[string]time.Time{}, news: make(chan struct{})}
}

// node is what one has told, but for the traffic.
type node struct {
	last         time.Time
	certificates []Certificate
	processes    map[uint64]*process
}

// process is one of a node's proxies: the one that is active, one that drains,
// or one that is gone.
type process struct {
	last  time.Time
	roots [][]Digest
	taken uint64 // the last summary
}

// process is the one that has told a summary now, which may be empty: it is
// known before it has said anything. It is nil for one that does not say which
// it is.
func (n *node) process(s *sight.Summary, now time.Time) *process {
	if s.GetProcess() == 0 && s.GetSequence() == 0 {
		return nil
	}
	p := n.processes[s.GetProcess()]
	if p == nil {
		if len(n.processes) >= maxProcesses {
			n.forgetOne()
		}
		p = &process{}
		n.processes[s.GetProcess()] = p
	}
	p.last = now
	return p
}

// forgetOne forgets the process that has been silent for the longest time.
func (n *node) forgetOne() {
	var oldest uint64
	for id, p := range n.processes {
		if o := n.processes[oldest]; o == nil || p.last.Before(o.last) {
			oldest = id
		}
	}
	delete(n.processes, oldest)
}

// isNew reports whether a summary was not taken before, as one is sent again
// whose answer was lost.
func (p *process) isNew(s *sight.Summary) bool {
	if p == nil || s.GetSequence() <= p.taken {
		return false
	}
	p.taken = s.GetSequence()
	return true
}

// Certificate is one of a node, or the lack of it.
type Certificate struct {
	Node     string `json:"node"`
	Identity string `json:"identity"`
	// NotAfter is zero as long as there is none.
	NotAfter time.Time `json:"notAfter,omitzero"`
	Renewal  time.Time `json:"renewal,omitzero"`
	Issuer   string    `json:"issuer,omitempty"`
	Error    string    `json:"error,omitempty"`
}

// Node says when one has told something last, and which of its proxies have
// done so within the hour.
type Node struct {
	Name    string
	Last    time.Time
	Proxies []Proxy
}

// Proxy says when one has told something last, and by which roots it judges:
// first tacitd, then peers. There are none if it has not said so.
type Proxy struct {
	Last  time.Time
	Roots [][]Digest
}

// Digest is the SHA-256 of a certificate.
type Digest = [sha256.Size]byte

// Take adds what a node has told. What is not well formed in it is left out.
func (h *Hour) Take(name string, s *sight.Summary, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.node(name)
	if n == nil {
		return
	}
	n.last = now
	p := n.process(s, now)
	if !p.isNew(s) {
		return
	}
	if s.GetListsCertificates() {
		n.certificates = certificates(name, s.GetCertificates())
	}
	p.roots = roots(s.GetRoots())
	h.count(s, now)
	for _, d := range s.GetDenials() {
		h.deny(name, d, now)
	}
	for _, u := range s.GetUses() {
		h.use(u, now)
	}
	close(h.news)
	h.news = make(chan struct{})
}

// node is nil for one too many.
func (h *Hour) node(name string) *node {
	n := h.nodes[name]
	if n == nil && len(h.nodes) < maxNodes {
		n = &node{processes: map[uint64]*process{}}
		h.nodes[name] = n
	}
	return n
}

func certificates(node string, said []*sight.Certificate) (out []Certificate) {
	for _, c := range said[:min(len(said), maxCertificates)] {
		out = append(out, Certificate{
			Node: node, Identity: text(c.GetIdentity()), NotAfter: seconds(c.GetNotAfter()), Renewal: seconds(c.GetRenewal()),
			Issuer: text(c.GetIssuer()), Error: text(c.GetError()),
		})
	}
	return out
}

// roots are nil if anything in them is not well formed: a part would be taken for
// all of them.
func roots(said []*sight.Roots) (sets [][]Digest) {
	if len(said) > maxRoots {
		return nil
	}
	for _, r := range said {
		if len(r.GetDigests()) > maxRoots {
			return nil
		}
		set := []Digest{}
		for _, d := range r.GetDigests() {
			if len(d) != sha256.Size {
				return nil
			}
			set = append(set, Digest(d))
		}
		sets = append(sets, set)
	}
	return sets
}

func (h *Hour) use(u *sight.Use, now time.Time) {
	policy, last := text(u.GetPolicy()), seconds(u.GetLast())
	if _, known := h.uses[policy]; !known && len(h.uses) >= maxUses {
		return
	}
	if last.After(now) { // a clock that is ahead
		last = now.UTC()
	}
	if last.After(h.uses[policy]) {
		h.uses[policy] = last
	}
}

// News is closed when something has been taken since it was asked for.
func (h *Hour) News() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.news
}

// Nodes are those that have told something within the hour before now.
func (h *Hour) Nodes(now time.Time) (out []Node) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, n := range h.nodes {
		if now.Sub(n.last) > Length {
			delete(h.nodes, name)
			continue
		}
		one := Node{Name: name, Last: n.last}
		for _, p := range n.processes {
			if now.Sub(p.last) <= Length {
				one.Proxies = append(one.Proxies, Proxy{p.last, p.roots})
			}
		}
		out = append(out, one)
	}
	return out
}

// Certificates are those of an identity, of all nodes.
func (h *Hour) Certificates(identity string) (out []Certificate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.nodes {
		for _, c := range n.certificates {
			if c.Identity == identity {
				out = append(out, c)
			}
		}
	}
	return out
}

// Uses are the policies that have decided about something, by when they last
// did, without those that are not known. Such are forgotten after a while: a
// proxy may know a policy sooner than whoever asks. Who knows no policies yet
// gives nil, and nothing is forgotten.
func (h *Hour) Uses(known func(policy string) bool, now time.Time) map[string]time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[string]time.Time, len(h.uses))
	for policy, last := range h.uses {
		if known == nil || known(policy) {
			delete(h.strange, policy)
		} else {
			since, there := h.strange[policy]
			switch {
			case !there:
				h.strange[policy] = now
			case now.Sub(since) >= strangeFor:
				delete(h.uses, policy)
				delete(h.strange, policy)
			}
			continue
		}
		out[policy] = last
	}
	return out
}
