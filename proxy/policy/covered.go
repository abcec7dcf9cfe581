package policy

import (
	"cmp"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tacit-mesh/tacit/xds/model"
)

// covered are the policies of one scope that cover a workload, in the order in
// which they are evaluated, and what is worked out of them once.
type covered struct {
	once     sync.Once
	done     atomic.Bool // what follows is final
	policies []*model.Policy
	missing  string // key of one that was never seen
	tokens   []*model.Policy
	limits   []*model.Policy
	index    index
}

// scopes are the policies of the whole mesh, of the workload's namespace, and
// those that the workload names.
type scopes [3]*covered

// What the memo of a snapshot holds scopes by, besides the workload.
type (
	wholeMesh   struct{}
	ofNamespace string
	ofNames     string // joined: workloads that name the same policies share an index
)

// maxKnown is of how many workloads, versions of one, namespaces and sets of
// policies it is remembered what covers them.
const maxKnown = 1024

// covers finds the policies that cover a workload of the snapshot.
func covers(s *model.Snapshot, w *model.Workload) *scopes {
	if known, ok := s.Memo().Load(w); ok {
		return known.(*scopes)
	}
	out := &scopes{
		remember(s, wholeMesh{}, func(c *covered) { c.policies = s.GlobalPolicies() }),
		remember(s, ofNamespace(w.Namespace), func(c *covered) { c.policies = s.NamespacePolicies(w.Namespace) }),
		remember(s, ofNames(strings.Join(w.Policies, "\n")), func(c *covered) { c.find(s, w.Policies) }),
	}
	forgetWorkloads(s.Memo())
	s.Memo().Store(w, out)
	return out
}

func remember(s *model.Snapshot, key any, fill func(*covered)) *covered {
	known, ok := s.Memo().Load(key)
	if !ok {
		known, _ = s.Memo().LoadOrStore(key, &covered{})
	}
	c := known.(*covered)
	c.once.Do(func() {
		fill(c)
		if known, ok := s.Before().Load(key); !ok || !c.take(known.(*covered)) {
			c.derive()
		}
		c.done.Store(true)
	})
	return c
}

// take takes over what was derived from the same policies before others changed.
func (c *covered) take(from *covered) bool {
	if !from.done.Load() || !slices.Equal(c.policies, from.policies) {
		return false
	}
	c.tokens, c.limits, c.index = from.tokens, from.limits, from.index
	return true
}

func (c *covered) derive() {
	for _, p := range c.policies {
		if p.Authentication != nil {
			c.tokens = append(c.tokens, p)
		}
		if p.RateLimit != nil {
			c.limits = append(c.limits, p)
		}
	}
	c.index = newIndex(c.policies)
}

func (c *covered) find(s *model.Snapshot, names []string) {
	for _, key := range names {
		switch p, removed := s.Policy(key); {
		case p != nil:
			c.policies = append(c.policies, p)
		case !removed:
			c.missing = cmp.Or(c.missing, key)
		}
	}
}

// forgetWorkloads keeps the memo small while pods and namespaces come and go
// under the same policies.
func forgetWorkloads(memo *sync.Map) {
	var known []any
	for key := range memo.Range {
		switch key.(type) {
		case *model.Workload, ofNamespace, ofNames:
			known = append(known, key)
		}
	}
	if len(known) < maxKnown {
		return
	}
	for _, key := range known {
		memo.Delete(key)
	}
}

// covering are the policies that cover a workload, those of the mesh first.
func covering(s *model.Snapshot, w *model.Workload) iter.Seq[*model.Policy] {
	return func(yield func(*model.Policy) bool) {
		for _, c := range covers(s, w) {
			for _, p := range c.policies {
				if !yield(p) {
					return
				}
			}
		}
	}
}
