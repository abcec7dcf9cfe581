package page

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/traffic"
)

// Map is who talked to whom in a stretch of the hour.
type Map struct {
	Now    time.Time `json:"now"`
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	Oldest time.Time `json:"oldest,omitzero"` // before it nothing is known
	// Missing says how many nodes tell nothing, and Nodes which, to those who
	// see everything.
	Missing int      `json:"missing"`
	Nodes   []string `json:"nodes"`
	// Partly says that the person sees some namespaces only.
	Partly    bool       `json:"partly"`
	Workloads []Workload `json:"workloads"`
	Edges     []Edge     `json:"edges"`
}

// Workload is one end of edges.
type Workload struct {
	flows.Party
	Pods     int  `json:"pods"`
	Captured int  `json:"captured"`
	Policy   bool `json:"policy"` // an AuthorizationPolicy covers it
}

// Edge is the traffic between two, by their places in the list.
type Edge struct {
	From   int    `json:"from"`
	To     int    `json:"to"`
	MTLS   uint64 `json:"mtls"` // connections
	Plain  uint64 `json:"plain"`
	Denied uint64 `json:"denied"` // connections and requests
	Failed uint64 `json:"failed"`
	// Requests of HTTP, and bytes both ways.
	Requests uint64 `json:"requests"`
	Bytes    uint64 `json:"bytes"`
	// Median and P99 are in microseconds, of requests and of what the proxies
	// add to connections; 0 for none.
	Median uint64   `json:"median"`
	P99    uint64   `json:"p99"`
	Why    []string `json:"why,omitempty"` // it was not all mTLS
}

// Hidden stands for all that a person may not see.
var hidden = flows.Party{Name: "(hidden)"}

// minutesAsked bounds how much is shown at once.
const minutesAsked = 60

// window is the stretch that a query asks for: ?minutes up to ?until, in Unix
// seconds, or up to now.
func window(r *http.Request, now time.Time) (from, to time.Time, err error) {
	minutes, until := 5, now
	if text := r.URL.Query().Get("minutes"); text != "" {
		if minutes, err = strconv.Atoi(text); err != nil || minutes < 1 || minutes > minutesAsked {
			return from, to, fmt.Errorf("minutes %.20q: want a number from 1 to %d", text, minutesAsked)
		}
	}
	if text := r.URL.Query().Get("until"); text != "" {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil || seconds < 0 || seconds > 1<<40 {
			return from, to, fmt.Errorf("until %.20q: want seconds since 1970", text)
		}
		until = time.Unix(seconds, 0)
	}
	return until.Add(-time.Duration(minutes) * time.Minute), until, nil
}

func (s *Server) drawMap(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	from, to, err := window(r, now)
	if err != nil {
		answer(w, http.StatusBadRequest, problem{err.Error()})
		return
	}
	answer(w, http.StatusOK, s.draw(r.Context(), viewerOf(r), from, to, now))
}

func (s *Server) draw(ctx context.Context, v Viewer, from, to, now time.Time) *Map {
	seen := s.Hour.Between(from, to)
	d := drawing{
		Map:    &Map{Now: now.UTC(), From: seen.From, To: seen.To, Oldest: s.Hour.Oldest(), Workloads: []Workload{}, Edges: []Edge{}, Nodes: []string{}},
		sees:   memo(ctx, v),
		places: map[flows.Party]int{}, edges: map[[2]int]*edge{},
	}
	silent := s.Silent(now)
	d.Missing = len(silent)
	if d.Partly = !d.sees(""); !d.Partly {
		d.Nodes = append(d.Nodes, silent...)
	}
	for _, c := range admin.CoveredWorkloads(s.Mesh()) {
		if d.sees(c.Namespace) {
			d.Workloads[d.place(c.Party)] = Workload{c.Party, c.Pods, c.Captured, c.Policy}
		}
	}
	for _, p := range traffic.Merge([]admin.Coverage{{Pairs: seen.Pairs}}) {
		d.add(&p)
	}
	d.finish()
	return d.Map
}

// memo asks for each namespace once.
func memo(ctx context.Context, v Viewer) func(string) bool {
	known := map[string]bool{}
	return func(namespace string) bool {
		sees, ok := known[namespace]
		if !ok {
			sees = v.Sees(ctx, namespace)
			known[namespace] = sees
		}
		return sees
	}
}

type drawing struct {
	*Map
	sees   func(namespace string) bool
	places map[flows.Party]int
	edges  map[[2]int]*edge
}

type edge struct {
	Edge
	latency [flows.LatencyBuckets]uint64
}

func (d *drawing) place(p flows.Party) int {
	at, ok := d.places[p]
	if !ok {
		at = len(d.Workloads)
		d.places[p] = at
		d.Workloads = append(d.Workloads, Workload{Party: p})
	}
	return at
}

// shown is a party, or what stands for it. What is outside of the mesh, and
// the others, are nobody's.
func (d *drawing) shown(p flows.Party) flows.Party {
	if p.Namespace == "" || d.sees(p.Namespace) {
		return p
	}
	return hidden
}

func (d *drawing) add(p *traffic.Pair) {
	from, to := d.shown(p.Source), d.shown(p.Destination)
	if !d.concerns(from) && !d.concerns(to) {
		return
	}
	key := [2]int{d.place(from), d.place(to)}
	e := d.edges[key]
	if e == nil {
		e = &edge{Edge: Edge{From: key[0], To: key[1]}}
		d.edges[key] = e
	}
	if p.Security == "mtls" {
		e.MTLS += p.Carried()
	} else {
		e.Plain += p.Carried()
	}
	e.Denied += p.Denied
	e.Failed += p.Failed
	e.Requests += p.Requests
	e.Bytes += p.Sent + p.Received
	for i, n := range p.Latency {
		e.latency[i] += n
	}
	if p.Why != "" && !slices.Contains(e.Why, p.Why) {
		e.Why = append(e.Why, p.Why)
	}
}

// concerns reports whether a party makes an edge the person's business: one
// that they see, or anything to those who see all.
func (d *drawing) concerns(p flows.Party) bool {
	return p.Namespace != "" && p != hidden || !d.Partly
}

func (d *drawing) finish() {
	for _, e := range d.edges {
		e.Median, e.P99 = traffic.Quantile(&e.latency, 0.5), traffic.Quantile(&e.latency, 0.99)
		slices.Sort(e.Why)
		d.Edges = append(d.Edges, e.Edge)
	}
	slices.SortFunc(d.Edges, func(a, b Edge) int { return cmp.Or(a.From-b.From, a.To-b.To) })
}

// words are our own words as people read them.
func words(s string) string { return strings.ReplaceAll(s, "_", " ") }
