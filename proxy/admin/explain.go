package admin

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Explanation is the answer to /explain: what would become of a connection,
// or did, and why.
type Explanation struct {
	Outcome Outcome `json:"outcome"`
	Summary string  `json:"summary"`
	// Change is what would have to be different for the opposite outcome.
	Change string `json:"change,omitempty"`
	// Recorded are the sides of the connection that was asked for by id.
	Recorded []Connection `json:"recorded,omitempty"`
	Steps    []Step       `json:"steps"`
}

// Outcome is what becomes of a connection.
type Outcome string

// The outcomes.
const (
	Allowed   Outcome = "allowed"
	Denied    Outcome = "denied"
	Unchecked Outcome = "unchecked" // it passes, and no policy is asked
	Depends   Outcome = "depends"   // on the endpoint that is chosen
)

// Step is one part of the way to the outcome.
type Step struct {
	// Stage is "recorded", "source", "destination", "capture", "route",
	// "certificate", "arrival", "policy" or "outcome".
	Stage string `json:"stage"`
	// Mark is "ok"; or "stop" where the connection is stopped, or would be by
	// this alone; or "note" where the mesh has no say or something is missing.
	Mark string `json:"mark"`
	Text string `json:"text"`
	// Policy is what one policy had to say, at stage "policy".
	Policy *policy.Step `json:"policy,omitempty"`
	// Ask is whom to ask about what is not known here, at stage "certificate".
	Ask *Ask `json:"ask,omitempty"`
}

// Ask is the node that alone has the certificates of an identity's pods there.
type Ask struct {
	Node     string `json:"node"`
	Identity string `json:"identity"`
}

const (
	ok   = "ok"
	stop = "stop"
	note = "note"
)

// weighed bounds how many endpoints of a service are looked at.
const weighed = 5

// Explain says what would become of a connection in a mesh that no proxy has to
// serve: the ends are named as in /explain.
func Explain(s *model.Snapshot, from, to string) (Explanation, error) {
	e := &explainer{snapshot: s, now: time.Now()}
	err := e.pair(from, to)
	return e.Explanation, err
}

// ExplainRecorded says what was recorded of a connection, by its sides, and what
// would become of it in a mesh that no proxy has to serve.
func ExplainRecorded(s *model.Snapshot, sides []Connection) (Explanation, error) {
	e := &explainer{snapshot: s, now: time.Now()}
	err := e.connection("", sides)
	return e.Explanation, err
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	id, from, to := query.Get("id"), query.Get("from"), query.Get("to")
	elsewhere, err := elsewhere(query[QueryCertificates])
	if err != nil {
		answerWith(w, http.StatusBadRequest, problem{err.Error()})
		return
	}
	e := &explainer{snapshot: s.Snapshot(), now: time.Now(), node: s.Node, certificates: s.Certificates, elsewhere: elsewhere}
	if s.Network != nil {
		e.network = s.Network()
	}
	switch {
	case id != "" && from == "" && to == "":
		var sides []Connection
		if s.Find != nil {
			sides = s.Find(id)
		}
		err = e.connection(id, sides)
	case id == "" && from != "" && to != "":
		err = e.pair(from, to)
	default:
		answerWith(w, http.StatusBadRequest, problem{"want id=CONNECTION, or from=NAMESPACE/POD and to=NAMESPACE/POD:PORT, HOST:PORT or IP:PORT"})
		return
	}
	if err != nil {
		answerWith(w, http.StatusNotFound, problem{err.Error()})
		return
	}
	answer(w, e.Explanation)
}

// explainer writes one Explanation, from one snapshot.
type explainer struct {
	Explanation
	snapshot *model.Snapshot
	network  string // of the node
	node     string
	// certificates are those of the node; nil where none is known.
	certificates func() []Certificate
	elsewhere    map[string][]Certificate // those of other nodes that are known
	now          time.Time
	// identify is what would give the client an identity, while it has none.
	identify string
}

func (e *explainer) step(stage, mark, format string, args ...any) {
	e.Steps = append(e.Steps, Step{Stage: stage, Mark: mark, Text: fmt.Sprintf(format, args...)})
}

func (e *explainer) conclude(o Outcome, summary, change string) {
	e.Outcome, e.Summary, e.Change = o, summary, change
	mark := note
	switch o {
	case Allowed:
		mark = ok
	case Denied:
		mark = stop
	case Unchecked, Depends:
	}
	e.step("outcome", mark, "%s", summary)
}

// pair explains a connection that from would open to to.
func (e *explainer) pair(from, to string) error {
	src, err := e.source(from)
	if err != nil {
		return err
	}
	dst, err := e.destination(src, to)
	if err != nil {
		return err
	}
	e.journey(src, dst)
	return nil
}

// journey follows a connection from the client's socket to the server's.
func (e *explainer) journey(src client, dst netip.AddrPort) {
	captured, inside := e.capture(src, dst)
	if inside {
		e.conclude(Unchecked, fmt.Sprintf("%s stays inside the pod: nothing checks it.", dst), "")
		return
	}
	r := route.Resolve(e.snapshot, src.routeSource(dst), dst)
	if r.Refusal != route.NotRefused {
		e.route(r, stop)
		e.conclude(Denied, fmt.Sprintf("Refused: %s.", r.Refusal), routeChange(r))
		return
	}
	switch {
	case captured:
		e.route(r, ok)
	case r.Service != nil:
		e.step("route", note, "%s is a virtual address of service %s: the cluster's own service routing chooses the endpoint.", dst.Addr(), r.Service.Key())
	}
	var verdicts []verdict
	for c := range r.Candidates(0) {
		if len(verdicts) == weighed {
			e.step("arrival", note, "Further endpoints are not looked at.")
			break
		}
		verdicts = append(verdicts, e.arrival(src, c, captured))
	}
	e.sum(verdicts)
}

// route shows how the route came about; last is the mark of its last step.
func (e *explainer) route(r route.Route, last string) {
	steps := r.Explain()
	for _, text := range steps[:len(steps)-1] {
		e.step("route", ok, "%s", text)
	}
	e.step("route", last, "%s", steps[len(steps)-1])
}

func routeChange(r route.Route) string {
	switch r.Refusal {
	case route.NotReady:
		return "Wait for the control plane: `tacit status` shows whether the proxy reaches it."
	case route.UnknownPort:
		return fmt.Sprintf("Add port %d to service %s, or connect to one that it has.", r.Destination.Port(), r.Service.Key())
	case route.NoEndpoints:
		return fmt.Sprintf("Service %s needs an endpoint that is ready and has the port; the steps say why each was left out.", r.Service.Key())
	case route.NoWaypoint:
		return "Start a pod of the waypoint that the destination is to be reached by, and look whether it is ready."
	case route.Loop:
		return "Connect to another port: this one belongs to the proxy."
	case route.NotRefused:
	}
	return ""
}

// verdict is what one endpoint would make of the connection.
type verdict struct {
	endpoint        string
	outcome         Outcome
	summary, change string
}

// sum joins the endpoints' verdicts into one: where they differ and none
// denies, some do not check.
func (e *explainer) sum(all []verdict) {
	first, differ, joined, each := all[0], false, Unchecked, []string{}
	for _, v := range all {
		differ = differ || v.outcome != first.outcome
		if v.outcome == Denied {
			joined = Depends
		}
		each = append(each, fmt.Sprintf("%s %s", v.endpoint, v.outcome))
	}
	if differ {
		e.conclude(joined, fmt.Sprintf("It depends on the endpoint that is chosen: %s.", strings.Join(each, ", ")), firstChange(all))
		return
	}
	e.conclude(first.outcome, first.summary, first.change)
}

// firstChange is what would help at the first endpoint that denies.
func firstChange(all []verdict) string {
	for _, v := range all {
		if v.outcome == Denied {
			return v.change
		}
	}
	return ""
}

func podName(w *model.Workload) string { return w.Namespace + "/" + w.Name }
