package flows

import (
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"
	"unique"

	"github.com/tacit-mesh/tacit/xds/model"
)

// How many bytes are kept of what callers said.
const (
	maxMethod  = 16
	maxHost    = 60
	maxPath    = 90
	maxProblem = 154
)

// record is a flow as it is remembered. What many flows have in common, they
// share: who the ends are, and what became of it. What callers said is copied
// within bounds.
type record struct {
	kind                Kind
	inbound             bool
	lengths             [4]uint8 // of method, host, path, problem in words
	weight, status      int
	id, words           string
	began, time         time.Time
	source, destination recordedEnd
	verdict             unique.Handle[verdict]
	sent, received      int64
	added               time.Duration
}

type recordedEnd struct {
	addr  netip.AddrPort
	party unique.Handle[recordedParty]
}

// recordedParty is who an end is.
type recordedParty struct {
	namespace, name, owner string
	identity               model.Identity
}

// verdict is what became of a flow, and how it travelled.
type verdict struct {
	security, outcome, why, service, protocol string
	policy, reason, attribute, dryRun         string
}

func (r *record) fill(e *Event, weight int) {
	*r = record{
		kind: e.Kind, inbound: e.Inbound, weight: weight, id: e.ID,
		began: e.Began, time: e.Time, source: recorded(&e.Source), destination: recorded(&e.Destination),
		verdict: unique.Make(verdict{
			security: e.Security, outcome: e.Outcome, why: why(e), service: e.Service, protocol: e.Protocol,
			policy: e.Policy, reason: e.Reason, attribute: e.Attribute, dryRun: e.DryRun,
		}),
		status: e.Status, sent: e.Sent, received: e.Received, added: e.Added,
	}
	problem := ""
	if e.Err != nil {
		problem = e.Err.Error()
	}
	var words [maxMethod + maxHost + maxPath + maxProblem]byte
	at := 0
	for i, word := range [...]struct {
		text string
		most int
	}{{e.Method, maxMethod}, {e.Host, maxHost}, {e.Path, maxPath}, {problem, maxProblem}} {
		n := copy(words[at:], cut(word.text, word.most))
		r.lengths[i] = uint8(n)
		at += n
	}
	r.words = string(words[:at])
}

// Cut is what texts end with that were too long to be kept whole.
const Cut = "…"

// cut shortens a text that is too long to a whole character.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	n := most - len(Cut)
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + Cut
}

func recorded(e *End) recordedEnd {
	p := recordedParty{namespace: e.Namespace, name: e.Name, identity: e.Identity}
	if w := e.Workload; w != nil {
		p.namespace, p.name, p.owner = w.Namespace, w.Name, w.WorkloadName
	}
	return recordedEnd{addr: e.Addr, party: unique.Make(p)}
}

// word is one of what callers said.
func (r *record) word(i int) string {
	at := 0
	for _, n := range r.lengths[:i] {
		at += int(n)
	}
	return strings.ToValidUTF8(r.words[at:at+int(r.lengths[i])], "\uFFFD")
}

// Flow is a connection or request as it is shown.
type Flow struct {
	Kind string `json:"kind"` // "opened", "ended", "request" or "live"
	// Node is left to whoever asks several.
	Node      string    `json:"node,omitempty"`
	Time      time.Time `json:"time"`
	Began     time.Time `json:"began"`
	ID        string    `json:"id,omitempty"`
	Direction string    `json:"direction"`
	Source    Peer      `json:"source"`
	// Destination is the workload that was chosen, not the service.
	Destination Peer   `json:"destination"`
	Service     string `json:"service,omitempty"` // hostname
	Security    string `json:"security"`
	// Why says why it was not mTLS; see the Why constants.
	Why       string `json:"why,omitempty"`
	Outcome   string `json:"outcome"`
	Policy    string `json:"policy,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Attribute string `json:"attribute,omitempty"`
	DryRun    string `json:"dryRun,omitempty"`
	Error     string `json:"error,omitempty"`
	HTTP      *HTTP  `json:"http,omitempty"`
	Sent      int64  `json:"sent"`
	Received  int64  `json:"received"`
	// AddedMicros is the latency that the proxy added to a connection.
	AddedMicros int64 `json:"addedMicros,omitempty"`
	// Weight is how many flows this one stands for, beyond one where there
	// were too many to keep all.
	Weight int `json:"weight"`
}

// Peer is one end of a flow.
type Peer struct {
	Address   netip.AddrPort `json:"address,omitzero"`
	Namespace string         `json:"namespace,omitempty"`
	Pod       string         `json:"pod,omitempty"`
	Owner     string         `json:"owner,omitempty"` // the Deployment and such
	Identity  string         `json:"identity,omitempty"`
}

// HTTP is what a request was about.
type HTTP struct {
	Protocol string `json:"protocol"`
	Method   string `json:"method"`
	Host     string `json:"host"`
	Path     string `json:"path"`
	Status   int    `json:"status"`
}

func (r *record) flow() Flow {
	v := r.verdict.Value()
	f := Flow{
		Kind: r.kind.String(), Time: r.time, Began: r.began, ID: r.id, Direction: direction(r.inbound),
		Source: r.source.peer(), Destination: r.destination.peer(), Service: v.service,
		Security: v.security, Why: v.why, Outcome: v.outcome, Policy: v.policy, Reason: v.reason, Attribute: v.attribute, DryRun: v.dryRun,
		Error: r.word(3), Sent: r.sent, Received: r.received, AddedMicros: r.added.Microseconds(), Weight: r.weight,
	}
	if r.kind == Requested {
		f.HTTP = &HTTP{Protocol: v.protocol, Method: r.word(0), Host: r.word(1), Path: r.word(2), Status: r.status}
	}
	return f
}

func direction(inbound bool) string {
	if inbound {
		return "inbound"
	}
	return "outbound"
}

func (e *recordedEnd) peer() Peer {
	p := e.party.Value()
	return Peer{Address: e.addr, Namespace: p.namespace, Pod: p.name, Owner: p.owner, Identity: p.identity.String()}
}

// Show is an event as a flow, where the filter takes it.
func Show(e *Event, f *Filter) (Flow, bool) {
	var r record
	r.fill(e, 1)
	if !f.takes(&r) {
		return Flow{}, false
	}
	return r.flow(), true
}
