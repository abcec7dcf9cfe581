// Package replay decides about recorded connections and requests once more, by
// policies that are not in force yet, and tells what would come out otherwise.
//
// What does not belong here: where records, objects and policies come from
// (cmd/tacit), and how the result is shown to people (cmd/tacit/show).
package replay

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Change is how a flow would come out, if not as it did.
type Change string

// The changes. Where a decision needs what was not recorded, it is not guessed.
const (
	NewlyDenied  Change = "newly_denied"
	NewlyAllowed Change = "newly_allowed"
	Untold       Change = "cannot_be_told"
)

// Row is what would become of flows that have the same in common.
type Row struct {
	Change      Change      `json:"change"`
	Source      flows.Party `json:"source"`
	Identity    string      `json:"identity,omitempty"` // of the source, if it had one
	Destination flows.Party `json:"destination"`
	Port        uint16      `json:"port"`
	Method      string      `json:"method,omitempty"` // of requests
	// Why is the decision, or what is missing for one.
	Why    string `json:"why"`
	Policy string `json:"policy,omitempty"`
	Flows  int    `json:"flows"` // how many there were
	// ID is of the last of their connections, for tacit explain.
	ID string `json:"id,omitempty"`
}

// Result is the outcome for all flows.
type Result struct {
	// Replayed flows were decided about by policies when they were recorded;
	// Unchanged are those of them that would come out as they did.
	Replayed  int `json:"replayed"`
	Unchanged int `json:"unchanged"`
	// Rows are the others, newly denied ones first, then by their number.
	Rows []Row `json:"rows"`
}

// Count is how many flows there are with a change.
func (r *Result) Count(c Change) (n int) {
	for _, row := range r.Rows {
		if row.Change == c {
			n += row.Flows
		}
	}
	return n
}

// Mesh is what the objects make, with candidate policies in the place of those
// of the same kind and name and beside all others; with instead, of all others.
// The remarks say what of them has no effect as written.
func Mesh(settings build.Settings, objects, candidates build.Objects, instead bool) (s *model.Snapshot, remarks []string) {
	remarks = standIns(&settings, objects, candidates)
	if instead {
		objects.AuthorizationPolicies, objects.PeerAuthentications, objects.RequestAuthentications = nil, nil, nil
	}
	m := build.New(settings)
	s = model.NewSnapshot().Apply(m.Apply(objects.Since(nil)))
	s = s.Apply(m.Apply(candidates.Since(nil)))
	for _, p := range m.Problems() {
		remarks = append(remarks, p.Error())
	}
	for _, status := range m.Statuses() {
		for _, message := range status.Messages {
			remarks = append(remarks, fmt.Sprintf("%s %s/%s: %s", status.Kind, status.Namespace, status.Name, message))
		}
	}
	return s, remarks
}

// standIns gives CUSTOM policies a provider that is not asked, where it is not
// known which there are.
func standIns(settings *build.Settings, all ...build.Objects) (remarks []string) {
	if settings.Providers != nil {
		return nil
	}
	settings.Providers = map[string]*model.Provider{}
	for _, objects := range all {
		for _, p := range objects.AuthorizationPolicies {
			name := p.Spec.GetProvider().GetName()
			if name == "" || settings.Providers[name] != nil {
				continue
			}
			settings.Providers[name] = &model.Provider{Name: name}
			remarks = append(remarks, fmt.Sprintf("the configuration of the mesh is not known (--mesh-config), so provider %s is taken for one that it has", name))
		}
	}
	return remarks
}

// Run decides about the flows that the servers' nodes recorded. Limits of rates
// are not counted again. Instead is that of Mesh.
func Run(s *model.Snapshot, recorded []flows.Flow, instead bool) Result {
	requested := map[string]bool{} // connections of which the requests are known
	for i := range recorded {
		if recorded[i].HTTP != nil {
			requested[recorded[i].ID] = true
		}
	}
	result := Result{Rows: []Row{}}
	rows := map[Row]*Row{}
	mesh := index(s)
	for i := range recorded {
		f := &recorded[i]
		allowed, decided := outcome(f)
		if !decided {
			continue
		}
		n := max(f.Weight, 1)
		result.Replayed += n
		change, why, by := mesh.decide(f, allowed, requested[f.ID])
		if change == NewlyAllowed && !known(s, f.Policy, instead) {
			change, why, by = Untold, "the mesh's objects make no policy "+f.Policy+", which denied it", f.Policy
		}
		if change == "" {
			result.Unchanged += n
			continue
		}
		key := rowOf(f, change, why, by)
		if rows[key] == nil {
			row := key
			rows[key] = &row
		}
		rows[key].Flows += n
		rows[key].ID = f.ID
	}
	for _, row := range rows {
		result.Rows = append(result.Rows, *row)
	}
	slices.SortFunc(result.Rows, compare)
	return result
}

func compare(a, b Row) int {
	order := []Change{NewlyDenied, NewlyAllowed, Untold}
	return cmp.Or(
		cmp.Compare(slices.Index(order, a.Change), slices.Index(order, b.Change)), cmp.Compare(b.Flows, a.Flows),
		strings.Compare(fmt.Sprint(a.Source, a.Identity, a.Destination, a.Port, a.Method, a.Why), fmt.Sprint(b.Source, b.Identity, b.Destination, b.Port, b.Method, b.Why)))
}

func rowOf(f *flows.Flow, change Change, why, by string) Row {
	row := Row{Change: change, Source: party(f.Source), Identity: f.Source.Identity, Destination: party(f.Destination),
		Port: f.Destination.Address.Port(), Why: why, Policy: by}
	if f.HTTP != nil {
		row.Method = f.HTTP.Method
	}
	return row
}

// party is the workload or, where the mesh knew none, the address.
func party(p flows.Peer) flows.Party {
	if name := cmp.Or(p.Owner, p.Pod); name != "" {
		return flows.Party{Namespace: p.Namespace, Name: name}
	}
	return flows.Party{Name: p.Address.Addr().String()}
}

// outcome is how policies decided about a flow; decided is false where they did
// not, or another node's did.
func outcome(f *flows.Flow) (allowed, decided bool) {
	if f.Direction != "inbound" {
		return false, false
	}
	switch f.Outcome {
	case "ok", "reset":
		return true, f.Kind != "opened"
	case "denied":
		switch f.Reason {
		case policy.ReasonDenied.String(), policy.ReasonNotAllowed.String(), policy.ReasonForeign.String(), "client_skips_port":
			return false, true
		}
	}
	return false, false
}

// pods are those of a mesh by name, of which an address may have several: one in
// each network.
type pods struct {
	*model.Snapshot
	byName map[[2]string][]*model.Workload
}

func index(s *model.Snapshot) pods {
	p := pods{s, map[[2]string][]*model.Workload{}}
	for _, w := range s.Workloads() {
		key := [2]string{w.Namespace, w.Name}
		p.byName[key] = append(p.byName[key], w)
	}
	return p
}

// at is the pod that one was recorded as, in whatever network it is; nil if it is
// not in the mesh.
func (p pods) at(recorded flows.Peer) *model.Workload {
	all := p.byName[[2]string{recorded.Namespace, recorded.Pod}]
	if i := slices.IndexFunc(all, func(w *model.Workload) bool { return w.HasAddress(recorded.Address.Addr()) }); i >= 0 {
		return all[i]
	}
	return nil
}

// decide returns the change and why, none if the flow would come out as it did.
func (p pods) decide(f *flows.Flow, was, requestsKnown bool) (change Change, why, by string) {
	s, w := p.Snapshot, p.at(f.Destination)
	if w == nil {
		return Untold, "the server is not among the objects of the mesh", ""
	}
	r := p.request(f, w)
	reads := policy.CoversHTTP(s, w, r.Destination.Port())
	var d policy.Decision
	switch {
	case f.HTTP == nil && reads:
		d = policy.EvaluateConnection(s, &r)
		if d.Allowed && !(was && requestsKnown) {
			return Untold, "a policy looks into its requests, which were not read when it was recorded", ""
		}
	case f.HTTP != nil && reads:
		if lack := lacks(s, f, w); lack != "" {
			return Untold, lack, ""
		}
		d = policy.Evaluate(s, &r)
	default:
		d = policy.Evaluate(s, &r)
	}
	switch {
	case d.Reason == policy.ReasonAsk:
		return Untold, "the provider of policy " + d.Policy + " decides", d.Policy
	case d.Allowed == was:
		return "", "", ""
	case was:
		return NewlyDenied, d.String(), d.Policy
	}
	return NewlyAllowed, d.String(), d.Policy
}

// known reports whether it is known what became of the policy that denied a
// flow: it is there, or the candidates stand in its place. A policy made of
// PeerAuthentications goes with what they say; a revocation is never replaced.
func known(s *model.Snapshot, key string, instead bool) bool {
	if p, _ := s.Policy(key); p != nil || key == "" {
		return true
	}
	_, name, _ := strings.Cut(key, "/")
	if model.MadeOfRevokedIdentity(name) {
		return false
	}
	return instead || model.MadeOfPeerAuthentications(name)
}

// request are the facts of a flow, as far as they are recorded.
func (p pods) request(f *flows.Flow, w *model.Workload) policy.Request {
	r := policy.Request{Source: f.Source.Address.Addr(), Destination: f.Destination.Address, Workload: w, Time: f.Began}
	if f.Source.Identity != "" {
		// What cannot be read is nobody's: no policy allows it by mistake.
		r.Identity, _ = model.ParseIdentity(f.Source.Identity)
	}
	// A client of another network comes from the address of a gateway, and its
	// pod is not known here either.
	if from := p.WorkloadAt(w.Network, r.Source); from != nil && (r.Identity.IsZero() || from.Is(r.Identity)) {
		r.SourceWorkload = from
	}
	if f.HTTP != nil {
		r.HTTP = &policy.HTTPRequest{Method: f.HTTP.Method, Path: f.HTTP.Path, Host: f.HTTP.Host}
	}
	return r
}

// lacks says what a decision about a request would need that no record has.
func lacks(s *model.Snapshot, f *flows.Flow, w *model.Workload) string {
	if strings.HasSuffix(f.HTTP.Path, flows.Cut) || strings.HasSuffix(f.HTTP.Host, flows.Cut) {
		return "its path or host was too long to be recorded"
	}
	policies := append(slices.Clone(s.GlobalPolicies()), s.NamespacePolicies(w.Namespace)...)
	for _, key := range w.Policies {
		if p, _ := s.Policy(key); p != nil {
			policies = append(policies, p)
		}
	}
	for _, p := range policies {
		if p.DryRun {
			continue
		}
		if p.Action == model.ActionAuthenticate || slices.ContainsFunc(p.Rules, beyond) {
			return "policy " + s.PolicyKey(p) + " is about headers, tokens or clients behind proxies, which are not recorded"
		}
	}
	return ""
}

// beyond reports whether a rule is about more of a request than its method,
// host and path.
func beyond(r model.Rule) bool {
	for _, c := range r.Clauses {
		for _, m := range c.Matches {
			h := m.HTTP
			if h == nil {
				continue
			}
			if len(h.RequestPrincipals)+len(h.NotRequestPrincipals)+len(h.Audiences)+len(h.NotAudiences)+len(h.Presenters)+len(h.NotPresenters)+
				len(h.Headers)+len(h.NotHeaders)+len(h.Claims)+len(h.NotClaims)+len(h.ServerNames)+len(h.NotServerNames)+
				len(h.RemoteIPs)+len(h.NotRemoteIPs) > 0 {
				return true
			}
		}
	}
	return false
}
