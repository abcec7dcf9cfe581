package admin

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/xds/model"
)

// arrival says what becomes of the connection at one candidate.
func (e *explainer) arrival(src client, to route.Candidate, captured bool) verdict {
	w := to.Workload
	switch to.Means {
	case route.Passthrough:
		e.step("arrival", note, "%s is outside the mesh: no policy is asked.", to.Target)
		return verdict{endpoint: to.Target.String(), outcome: Unchecked, summary: fmt.Sprintf("%s is outside the mesh: nothing checks the connection.", to.Target)}
	case route.Unmeshed:
		if w.Bypass != "" {
			e.step("arrival", note, "Pod %s is not captured, for bypass %s is in force: no policy is asked there.", podName(w), w.Bypass)
			return verdict{
				endpoint: podName(w), outcome: Unchecked,
				summary: fmt.Sprintf("Pod %s is under bypass %s: nothing checks the connection.", podName(w), w.Bypass),
				change:  fmt.Sprintf("End bypass %s (tacit bypass end %s), and the pod's policies are enforced.", w.Bypass, w.Bypass),
			}
		}
		e.step("arrival", note, "Pod %s is not captured: no policy is asked there.", podName(w))
		return verdict{
			endpoint: podName(w), outcome: Unchecked,
			summary: fmt.Sprintf("Pod %s is not captured: nothing checks the connection.", podName(w)),
			change:  fmt.Sprintf("Enrol pod %s (label tacit.mesh/dataplane: enabled), and its policies are enforced.", podName(w)),
		}
	case route.Skipped:
		return e.skipped(src, to)
	case route.HBONE:
	}
	if to.ByGateway() {
		e.step("arrival", note, "What the waypoint's pod %s makes of it is the waypoint's to say.", podName(w))
		return verdict{
			endpoint: podName(w), outcome: Unchecked,
			summary: fmt.Sprintf("Waypoint %s gets the connection, and decides what becomes of it.", podName(w)),
			change:  "Ask the waypoint, and what is behind it about connections from the waypoint.",
		}
	}
	request := policy.Request{Source: src.address(to.Target.Addr()), SourceWorkload: src.workload, Destination: to.Target, Workload: w, Time: e.now}
	if captured {
		for _, end := range []*model.Workload{src.workload, w} {
			if v, lacks := e.certificate(end); lacks {
				return v
			}
		}
		request.Identity = src.workload.Identity()
		e.step("arrival", ok, "At pod %s it arrives by mutual TLS, proven to come from %s.", podName(w), request.Identity)
	} else {
		e.step("arrival", note, "At pod %s it arrives as plain TCP on captured port %d, without an identity.", podName(w), to.Target.Port())
	}
	return e.judge(request)
}

// skipped names the policies that a skipped port leaves without effect.
func (e *explainer) skipped(src client, to route.Candidate) verdict {
	w, port := to.Workload, to.Target.Port()
	skipped := skippedBy(w).Inbound
	e.step("arrival", note, "Pod %s skips inbound capture of ports %s, which covers %d%s: its proxy never sees the connection.", podName(w), w.SkipInbound, port, by(skipped))
	request := policy.Request{Source: src.address(to.Target.Addr()), Destination: to.Target, Workload: w, Time: e.now}
	for _, s := range policy.Explain(e.snapshot, &request) {
		if !s.Removed {
			e.step("policy", note, "%s covers the pod, but is not enforced on port %d.", s.Policy, port)
		}
	}
	return verdict{
		endpoint: podName(w), outcome: Unchecked,
		summary: fmt.Sprintf("Pod %s skips port %d: nothing checks the connection.", podName(w), port),
		change:  fmt.Sprintf("Take port %d out of the inbound skip list of pod %s%s, and its policies are enforced.", port, podName(w), in(skipped)),
	}
}

// judge asks every policy that covers the destination.
func (e *explainer) judge(r policy.Request) verdict {
	d := policy.Evaluate(e.snapshot, &r)
	steps := policy.Explain(e.snapshot, &r)
	if len(steps) == 0 && e.snapshot.PoliciesReady() {
		e.step("policy", note, "No policy covers the pod.")
	}
	for _, s := range steps {
		e.Steps = append(e.Steps, Step{Stage: "policy", Mark: mark(s, d), Text: s.String(), Policy: &s})
	}
	name, summary := r.Destination.String(), fmt.Sprintf("%s: %s.", r.Destination, d)
	if r.Workload != nil {
		name, summary = podName(r.Workload), fmt.Sprintf("Pod %s, port %d: %s.", podName(r.Workload), r.Destination.Port(), d)
	}
	v := verdict{endpoint: name, outcome: Denied, summary: summary, change: policyChange(d, deciding(steps, d), e.identify)}
	switch {
	case d.Allowed:
		v.outcome = Allowed
	case d.Reason == policy.ReasonAsk:
		v.outcome = Depends
	}
	return v
}

// mark is that of one policy's step on the way to the decision.
func mark(s policy.Step, d policy.Decision) string {
	switch {
	case s.DryRun || s.Removed:
		return note
	case s.Missing, s.Action == "DENY" && s.Matched, s.Action == "ALLOW" && d.Reason == policy.ReasonNotAllowed:
		return stop
	}
	return ok
}

// policyChange is what would have to be different for the opposite decision.
// A client without an identity can be given one by the words of identify.
func policyChange(d policy.Decision, step policy.Step, identify string) string {
	switch d.Reason {
	case policy.ReasonNotReady, policy.ReasonUnknownWorkload, policy.ReasonUndecided:
		return "Wait for the control plane: `tacit status` shows whether the proxy reaches it."
	case policy.ReasonMissingPolicy:
		return fmt.Sprintf("The control plane must send policy %s, or stop naming it for the pod.", d.Policy)
	case policy.ReasonDenied:
		if identify != "" && aboutIdentity(step.Attribute) {
			return fmt.Sprintf("The client must come with an identity: %s. Or the server must accept plain TCP: policy %s stands against it (of PeerAuthentication STRICT, if its name says so).", identify, d.Policy)
		}
		return fmt.Sprintf("DENY policy %s must stop matching%s.", d.Policy, because(step))
	case policy.ReasonNotAllowed:
		if identify != "" && aboutIdentity(step.Attribute) {
			return fmt.Sprintf("The client must come with an identity that an ALLOW policy wants: %s. The closest policy is %s%s.", identify, d.Policy, because(step))
		}
		return fmt.Sprintf("An ALLOW policy must match; the closest is %s%s.", d.Policy, because(step))
	case policy.ReasonAsk:
		return fmt.Sprintf("The provider of CUSTOM policy %s decides: its log says what it was asked and has answered.", d.Policy)
	case policy.ReasonAllowed:
		return fmt.Sprintf("It would be denied if no ALLOW policy matched any more (%s does now), or if a DENY policy did.", d.Policy)
	case policy.ReasonBypassed:
		return fmt.Sprintf("It is denied again for new connections once bypass %s has ended (tacit bypass end %s), by %s.", d.Bypass, d.Bypass, d.DryRun)
	case policy.ReasonNoPolicy:
		return "It would be denied by a DENY policy that matches, or as soon as an ALLOW policy covers the pod and none matches."
	}
	return ""
}

func deciding(steps []policy.Step, d policy.Decision) policy.Step {
	for _, s := range steps {
		if s.Policy == d.Policy {
			return s
		}
	}
	return policy.Step{}
}

func aboutIdentity(attribute string) bool {
	switch attribute {
	case "principals", "notPrincipals", "namespaces", "notNamespaces", "serviceAccounts", "notServiceAccounts":
		return true
	}
	return false
}

func because(s policy.Step) string {
	switch {
	case s.Wanted != "":
		return fmt.Sprintf(" (%s: wanted %s, got %s)", s.Attribute, s.Wanted, s.Actual)
	case s.Attribute != "":
		return fmt.Sprintf(" (it has a part that this version does not understand: %s)", s.Attribute)
	}
	return ""
}

// connection explains one that is or was, by its recorded sides, and what
// would become of it now.
func (e *explainer) connection(id string, sides []Connection) error {
	if len(sides) == 0 {
		return fmt.Errorf("connection %q: not known here: it ended long ago, or its pods are on other nodes; the log has the id of each connection", id)
	}
	e.Recorded = sides
	judged := sides[0]
	for _, c := range sides {
		mark := ok
		if c.Denied {
			mark = stop
		}
		e.step("recorded", mark, "%s", c.sentence())
		if c.Direction == Inbound {
			judged = c
		}
	}
	if judged.Direction == Inbound {
		v := e.judgeRecorded(judged)
		e.conclude(v.outcome, "As of now: "+v.summary, v.change)
		return nil
	}
	dst := judged.Original
	if !dst.IsValid() {
		dst = judged.Destination.Address
	}
	e.journey(client{workload: e.pod(judged.Source.Workload), bare: judged.Source.Address.Addr()}, dst)
	return nil
}

// judgeRecorded asks the policies of now about the facts of then.
func (e *explainer) judgeRecorded(c Connection) verdict {
	id, err := model.ParseIdentity(c.Source.Identity)
	if err != nil {
		id = model.Identity{} // none was proven
	}
	source := c.Source.Address.Addr()
	r := policy.Request{Source: source, Identity: id, Destination: c.Destination.Address, Workload: e.pod(c.Destination.Workload), Time: e.now}
	network := ""
	if r.Workload != nil {
		network = r.Workload.Network
	}
	if w := e.snapshot.WorkloadAt(network, source); w != nil && (id.IsZero() || w.Is(id)) {
		r.SourceWorkload = w
		if why, remedy := uncaptured(w, c.Destination.Address); id.IsZero() && why != "" {
			e.step("capture", note, "%s: its connection is plain TCP and has no identity.", why)
			e.identify = remedy
		}
	}
	if !id.IsZero() && r.Workload != nil {
		if v, lacks := e.certificate(r.Workload); lacks {
			return v
		}
	}
	return e.judge(r)
}

func (c Connection) sentence() string {
	text := fmt.Sprintf("%s: %s to %s, security %s, since %s", c.Direction, c.Source.describe(), c.Destination.describe(), c.Security, utc(c.Since))
	switch {
	case c.Denied && c.Reason != "":
		return text + ": " + c.Reason + "." // says itself that it is a denial
	case c.Denied:
		return text + ": denied."
	case c.Ended.IsZero():
		return text + ": alive."
	case c.Reason != "":
		return text + ": ended: " + c.Reason + "."
	}
	return text + ": ended."
}

func (e End) describe() string {
	parts := []string{}
	for _, part := range []string{e.Workload, e.Service, e.Identity} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	if e.Address != (netip.AddrPort{}) {
		parts = append(parts, e.Address.String())
	}
	return strings.Join(parts, " ")
}
