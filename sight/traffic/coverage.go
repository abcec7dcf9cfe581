package traffic

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/uses"
)

// Coverage is how much of what there is the mesh protects.
type Coverage struct {
	// Since is when the last of the proxies began to count.
	Since time.Time `json:"since"`
	All   Shares    `json:"all"`
	// Mesh is of connections between two workloads of the mesh.
	Mesh Shares `json:"mesh"`
	// Reasons are why connections were not mTLS, most frequent first.
	Reasons    []Reason    `json:"reasons"`
	Namespaces []Namespace `json:"namespaces"`
	Pairs      []Pair      `json:"pairs"`

	Workloads int `json:"workloads"` // with a captured pod
	// WithoutPolicy are those of them that no AuthorizationPolicy covers.
	WithoutPolicy []flows.Party `json:"withoutPolicy"`
	// PolicyCoverage is the share of the others, from 0 to 1.
	PolicyCoverage float64 `json:"policyCoverage"`
	// NotCaptured are workloads with pods that are not captured: what passes
	// between two of them is not seen.
	NotCaptured []NotCaptured `json:"notCaptured"`
	// UnusedPolicies have decided about nothing on any node since.
	UnusedPolicies []string `json:"unusedPolicies"`
	// Week is what tacitd remembers of policies for longer than proxies live; nil
	// where that is not known.
	Week *uses.Report `json:"week,omitempty"`
}

// Shares are connections that carried bytes, by how they travelled.
type Shares struct {
	MTLS        uint64 `json:"mtls"`
	Plain       uint64 `json:"plain"`
	Skipped     uint64 `json:"skipped"`
	Passthrough uint64 `json:"passthrough"` // to where the mesh knows nobody
	Denied      uint64 `json:"denied"`      // connections and requests; part of no share
	// Share is that of mTLS, from 0 to 1; 1 where there was nothing.
	Share float64 `json:"share"`
}

// Reason is why connections were not mTLS.
type Reason struct {
	Security    string `json:"security"`
	Why         string `json:"why"`
	Connections uint64 `json:"connections"`
}

// Namespace is what has an end there.
type Namespace struct {
	Namespace string `json:"namespace"`
	Shares
	Workloads     int `json:"workloads"`
	WithoutPolicy int `json:"withoutPolicy"`
}

// NotCaptured is a workload with pods that are not captured.
type NotCaptured struct {
	flows.Party
	Pods int    `json:"pods"` // those
	Why  string `json:"why"`
}

// Why pods are not captured.
const (
	WhyHost        = "host_network"
	WhyNotEnrolled = "not_enrolled"
)

// Sum makes the coverage of a mesh from what its nodes say.
func Sum(nodes []admin.Coverage) *Coverage {
	c := &Coverage{
		Pairs: Merge(nodes), Reasons: []Reason{}, WithoutPolicy: []flows.Party{}, NotCaptured: []NotCaptured{}, UnusedPolicies: []string{},
	}
	namespaces := map[string]*Namespace{}
	c.sumPairs(namespaces)
	var newest admin.Coverage
	for _, n := range nodes {
		if n.Since.After(c.Since) {
			c.Since = n.Since
		}
		if n.Now.After(newest.Now) {
			newest = n
		}
	}
	c.sumWorkloads(newest.Workloads, namespaces)
	c.findUnused(nodes, newest.Policies)
	for _, name := range slices.Sorted(maps.Keys(namespaces)) {
		n := namespaces[name]
		n.Finish()
		c.Namespaces = append(c.Namespaces, *n)
	}
	c.All.Finish()
	c.Mesh.Finish()
	return c
}

func find(namespaces map[string]*Namespace, name string) *Namespace {
	if namespaces[name] == nil {
		namespaces[name] = &Namespace{Namespace: name}
	}
	return namespaces[name]
}

func (c *Coverage) sumPairs(namespaces map[string]*Namespace) {
	reasons := map[Reason]uint64{}
	for i := range c.Pairs {
		p := &c.Pairs[i]
		c.All.Add(p)
		from, to := p.Source.Namespace, p.Destination.Namespace
		if from != "" && to != "" {
			c.Mesh.Add(p)
		}
		if from != "" {
			find(namespaces, from).Add(p)
		}
		if to != "" && to != from {
			find(namespaces, to).Add(p)
		}
		if p.Why != "" && p.Carried() > 0 {
			reasons[Reason{Security: p.Security, Why: p.Why}] += p.Carried()
		}
	}
	for r, n := range reasons {
		r.Connections = n
		c.Reasons = append(c.Reasons, r)
	}
	slices.SortFunc(c.Reasons, func(a, b Reason) int {
		return cmp.Or(cmp.Compare(b.Connections, a.Connections), strings.Compare(a.Security+a.Why, b.Security+b.Why))
	})
}

// Add counts a pair; Finish is to follow the last one.
func (s *Shares) Add(p *Pair) {
	s.Denied += p.Denied
	n := p.Carried()
	switch p.Security {
	case "mtls":
		s.MTLS += n
	case "skipped":
		s.Skipped += n
	case "passthrough":
		s.Passthrough += n
	default:
		s.Plain += n
	}
}

// Finish brings the share up to date.
func (s *Shares) Finish() {
	s.Share = ratio(s.MTLS, s.MTLS+s.Plain+s.Skipped+s.Passthrough)
}

func ratio(part, whole uint64) float64 {
	if whole == 0 {
		return 1
	}
	return float64(part) / float64(whole)
}

func (c *Coverage) sumWorkloads(all []admin.WorkloadCoverage, namespaces map[string]*Namespace) {
	for _, w := range all {
		if w.Host > 0 {
			c.NotCaptured = append(c.NotCaptured, NotCaptured{w.Party, w.Host, WhyHost})
		}
		if left := w.Pods - w.Host - w.Captured; left > 0 {
			c.NotCaptured = append(c.NotCaptured, NotCaptured{w.Party, left, WhyNotEnrolled})
		}
		if w.Captured == 0 {
			continue
		}
		n := find(namespaces, w.Namespace)
		c.Workloads++
		n.Workloads++
		if !w.Policy {
			c.WithoutPolicy = append(c.WithoutPolicy, w.Party)
			n.WithoutPolicy++
		}
	}
	c.PolicyCoverage = ratio(uint64(c.Workloads-len(c.WithoutPolicy)), uint64(c.Workloads))
}

func (c *Coverage) findUnused(nodes []admin.Coverage, policies []admin.PolicyUse) {
	used := map[string]bool{}
	for _, n := range nodes {
		for _, p := range n.Policies {
			used[p.Policy] = used[p.Policy] || !p.Last.IsZero()
		}
	}
	for _, p := range policies {
		if !used[p.Policy] {
			c.UnusedPolicies = append(c.UnusedPolicies, p.Policy)
		}
	}
}
