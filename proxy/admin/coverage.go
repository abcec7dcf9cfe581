package admin

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Coverage is the answer to /coverage: what the node's proxy has counted since
// it began, and what of the mesh has no policy. The latter is the same on all
// nodes.
type Coverage struct {
	Node string    `json:"node"`
	Now  time.Time `json:"now"`
	// Since is zero where the proxy keeps no flows and so has counted nothing.
	Since time.Time    `json:"since"`
	Pairs []flows.Pair `json:"pairs"`
	// Workloads are all of the mesh, a Deployment and such counting once.
	Workloads []WorkloadCoverage `json:"workloads"`
	// Policies are the AuthorizationPolicies in force, and when each last
	// decided about something on this node.
	Policies []PolicyUse `json:"policies"`
}

// WorkloadCoverage is what covers a workload.
type WorkloadCoverage struct {
	flows.Party
	Pods     int  `json:"pods"`
	Captured int  `json:"captured"` // pods
	Host     int  `json:"host"`     // pods that share their nodes' network, which is never captured
	Policy   bool `json:"policy"`   // an AuthorizationPolicy covers all pods
}

// PolicyUse says when a policy last decided; zero is not yet.
type PolicyUse struct {
	Policy string    `json:"policy"`
	Last   time.Time `json:"last,omitzero"`
}

func (s *Server) coverage(w http.ResponseWriter, _ *http.Request) {
	snapshot := s.Snapshot()
	since, matched := s.Flows.Matched()
	stream(w, func(e *encoder) {
		e.member("node", s.Node)
		e.member("now", time.Now().UTC())
		e.member("since", since.UTC())
		writeList(e, "pairs", s.Flows.Pairs(s.liveFlows()), asIs)
		writeList(e, "workloads", CoveredWorkloads(snapshot), asIs)
		writeList(e, "policies", PolicyUses(snapshot, matched), asIs)
	})
}

// CoveredWorkloads sums up the pods of a mesh by what runs them.
func CoveredWorkloads(s *model.Snapshot) []WorkloadCoverage {
	byOwner := map[flows.Party]*WorkloadCoverage{}
	for _, w := range s.Workloads() {
		party := flows.PartyOf(w)
		c := byOwner[party]
		if c == nil {
			c = &WorkloadCoverage{Party: party, Policy: true}
			byOwner[party] = c
		}
		c.Pods++
		switch {
		case w.HostNetwork:
			c.Host++
		case w.Protocol == model.ProtocolHBONE:
			c.Captured++
		}
		c.Policy = c.Policy && hasPolicy(s, w)
	}
	out := []WorkloadCoverage{}
	for _, c := range byOwner {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b WorkloadCoverage) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return out
}

// hasPolicy reports whether an AuthorizationPolicy in force covers a pod.
func hasPolicy(s *model.Snapshot, w *model.Workload) bool {
	if slices.ContainsFunc(s.GlobalPolicies(), authorizes) || slices.ContainsFunc(s.NamespacePolicies(w.Namespace), authorizes) {
		return true
	}
	return slices.ContainsFunc(w.Policies, func(key string) bool {
		p, _ := s.Policy(key)
		return p != nil && authorizes(p)
	})
}

// authorizes reports whether a policy says who may call.
func authorizes(p *model.Policy) bool {
	if p.DryRun || model.MadeOfPeerAuthentications(p.Name) {
		return false
	}
	return p.Action == model.ActionAllow || p.Action == model.ActionDeny || p.Action == model.ActionCustom
}

// deniesByDefault: such a policy decides by matching nothing.
func deniesByDefault(p *model.Policy) bool { return p.Action == model.ActionAllow && len(p.Rules) == 0 }

// PolicyUses are the AuthorizationPolicies in force, and when each last decided.
func PolicyUses(s *model.Snapshot, matched map[string]time.Time) []PolicyUse {
	out := []PolicyUse{}
	for _, p := range s.Policies() {
		if authorizes(p) && !deniesByDefault(p) {
			key := s.PolicyKey(p)
			use := PolicyUse{Policy: key}
			if last, ok := matched[key]; ok {
				use.Last = last.UTC()
			}
			out = append(out, use)
		}
	}
	slices.SortFunc(out, func(a, b PolicyUse) int { return strings.Compare(a.Policy, b.Policy) })
	return out
}
