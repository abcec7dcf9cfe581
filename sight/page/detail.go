package page

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/hour"
	"github.com/tacit-mesh/tacit/sight/traffic"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Detail is what is known of one workload.
type Detail struct {
	flows.Party
	Pods         []Pod              `json:"pods"`
	Policies     []Policy           `json:"policies"`
	Certificates []hour.Certificate `json:"certificates"`
	In           Traffic            `json:"in"`
	Out          Traffic            `json:"out"`
	Denials      []Denial           `json:"denials"`
}

// Pod is one of a workload.
type Pod struct {
	Name     string `json:"name"`
	Node     string `json:"node"`
	Identity string `json:"identity"`
	Captured bool   `json:"captured"`
}

// Policy is one that covers at least one of the pods.
type Policy struct {
	Name   string `json:"name"`
	Action string `json:"action"`
	Scope  string `json:"scope"`
	DryRun bool   `json:"dryRun,omitempty"`
	// Last is when it last decided about something, as far as is known.
	Last time.Time `json:"last,omitzero"`
	// Lacks says how far it is not enforced as written.
	Lacks []string `json:"lacks,omitempty"`
}

// Traffic is a direction of it.
type Traffic struct {
	traffic.Shares
	Failed   uint64 `json:"failed"`
	Requests uint64 `json:"requests"`
	Bytes    uint64 `json:"bytes"`
	Median   uint64 `json:"median"` // microseconds, as of an Edge
	P90      uint64 `json:"p90"`
	P99      uint64 `json:"p99"`

	latency [flows.LatencyBuckets]uint64
}

// Denial is one with its explanation.
type Denial struct {
	hour.Denial
	Steps  []string `json:"steps"`
	Change string   `json:"change"` // what would make it the opposite
}

func (s *Server) detail(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	from, to, err := window(r, now)
	party := flows.Party{Namespace: r.URL.Query().Get("namespace"), Name: r.URL.Query().Get("name")}
	sees := memo(r.Context(), viewerOf(r))
	switch {
	case err != nil:
		answer(w, http.StatusBadRequest, problem{err.Error()})
		return
	case party.Namespace == "" || !sees(party.Namespace):
		answer(w, http.StatusNotFound, problem{"no such workload, or none that you may see"})
		return
	}
	d := &Detail{Party: party, Pods: []Pod{}, Policies: []Policy{}, Certificates: []hour.Certificate{}, Denials: []Denial{}}
	s.describe(d, sees)
	for _, p := range traffic.Merge([]admin.Coverage{{Pairs: s.Hour.Between(from, to).Pairs}}) {
		if p.Destination == party {
			d.In.add(&p)
		}
		if p.Source == party {
			d.Out.add(&p)
		}
	}
	d.In.Finish()
	d.Out.Finish()
	for _, denial := range s.Hour.Denials(party, to) {
		d.Denials = append(d.Denials, explain(veil(denial, sees)))
	}
	answer(w, http.StatusOK, d)
}

// veil takes out of a denial who was at an end that the person may not see.
func veil(d hour.Denial, sees func(string) bool) hour.Denial {
	if ns := d.Source.Namespace; ns != "" && !sees(ns) {
		d.Source, d.SourcePod, d.SourceIdentity, d.SourceAddress, d.Error = hidden, "", "", "", ""
	}
	if ns := d.Destination.Namespace; ns != "" && !sees(ns) {
		d.Destination, d.DestinationPod, d.DestinationAddress, d.Policy, d.Attribute, d.Error = hidden, "", "", "", "", ""
	}
	if namespace, _, ok := strings.Cut(d.Policy, "/"); ok && !sees(namespace) {
		d.Policy, d.Attribute = "(hidden)", ""
	}
	return d
}

// describe adds what the mesh says: pods, their policies and certificates.
func (s *Server) describe(d *Detail, sees func(string) bool) {
	mesh := s.Mesh()
	policies, identities := map[*model.Policy]bool{}, map[string]bool{}
	for _, w := range mesh.Workloads() {
		if flows.PartyOf(w) != d.Party {
			continue
		}
		d.Pods = append(d.Pods, Pod{w.Name, w.Node, w.Identity().String(), w.Protocol == model.ProtocolHBONE})
		identities[w.Identity().String()] = true
		for _, p := range slices.Concat(mesh.GlobalPolicies(), mesh.NamespacePolicies(w.Namespace)) {
			policies[p] = true
		}
		for _, key := range w.Policies {
			if p, _ := mesh.Policy(key); p != nil {
				policies[p] = true
			}
		}
	}
	known := func(key string) bool { p, _ := mesh.Policy(key); return p != nil }
	if !mesh.PoliciesReady() {
		known = nil
	}
	uses := s.Hour.Uses(known, time.Now())
	for p := range policies {
		key := mesh.PolicyKey(p)
		d.Policies = append(d.Policies, Policy{key, action(p), scope(p), p.DryRun, uses[key], s.lacks(key, sees)})
	}
	slices.SortFunc(d.Policies, func(a, b Policy) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Pods, func(a, b Pod) int { return cmp.Compare(a.Name, b.Name) })
	for id := range identities {
		d.Certificates = append(d.Certificates, s.Hour.Certificates(id)...)
	}
	slices.SortFunc(d.Certificates, func(a, b hour.Certificate) int {
		return cmp.Or(cmp.Compare(a.Identity, b.Identity), cmp.Compare(a.Node, b.Node))
	})
}

// lacks tells who may not see a policy's namespace no more than that there is
// something: it may name others' pods.
func (s *Server) lacks(policy string, sees func(string) bool) []string {
	if s.Lacks == nil {
		return nil
	}
	lacks := s.Lacks(policy)
	if namespace, _, _ := strings.Cut(policy, "/"); len(lacks) > 0 && !sees(namespace) {
		return []string{"not everywhere as written"}
	}
	return lacks
}

func action(p *model.Policy) string {
	switch p.Action {
	case model.ActionAllow:
		return "ALLOW"
	case model.ActionDeny:
		return "DENY"
	case model.ActionAudit:
		return "AUDIT"
	case model.ActionCustom:
		return "CUSTOM"
	case model.ActionAuthenticate:
		return "tokens"
	case model.ActionLimit:
		return "rate limit"
	}
	return ""
}

func scope(p *model.Policy) string {
	switch p.Scope {
	case model.ScopeGlobal:
		return "mesh"
	case model.ScopeNamespace:
		return "namespace"
	case model.ScopeSelector:
	}
	return "workload"
}

// add sums up a direction; latency are all of its durations.
func (t *Traffic) add(p *traffic.Pair) {
	t.Shares.Add(p)
	t.Failed += p.Failed
	t.Requests += p.Requests
	t.Bytes += p.Sent + p.Received
	for i, n := range p.Latency {
		t.latency[i] += n
	}
	t.Median, t.P90, t.P99 = traffic.Quantile(&t.latency, 0.5), traffic.Quantile(&t.latency, 0.9), traffic.Quantile(&t.latency, 0.99)
}

// explain says how a denial came about, from who called to who refused.
func explain(d hour.Denial) Denial {
	out := Denial{Denial: d}
	step := func(format string, values ...any) { out.Steps = append(out.Steps, fmt.Sprintf(format, values...)) }
	what := "opened a connection to"
	if d.Method != "" {
		what = "asked (" + d.Method + ")"
	}
	step("%s %s %s.", end(d.Source, d.SourcePod, d.SourceAddress), what, end(d.Destination, d.DestinationPod, d.DestinationAddress))
	switch {
	case d.SourceIdentity != "":
		step("It proved to be %s, by mutual TLS.", d.SourceIdentity)
	case d.Source == hidden:
	case d.Why != "":
		step("It came in clear, so it has no identity: %s.", words(d.Why))
	default:
		step("It has no identity that was proven.")
	}
	step("%s", verdict(&d))
	if d.Error != "" {
		step("The proxy says: %s", d.Error)
	}
	if d.Weight > 1 {
		step("It stands for %d like it.", d.Weight)
	}
	out.Change = change(&d)
	return out
}

func end(p flows.Party, pod, address string) string {
	name := p.Name
	if pod != "" {
		name = pod
	}
	switch {
	case p == hidden:
		return "something that you may not see"
	case name == "" && address == "":
		return "something outside of the mesh"
	case name == "":
		return address
	case address == "":
		return p.Namespace + "/" + name
	}
	return fmt.Sprintf("%s/%s (%s)", p.Namespace, name, address)
}
