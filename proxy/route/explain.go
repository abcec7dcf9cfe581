package route

import (
	"fmt"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// explained bounds how many endpoints of each sort Explain names.
const explained = 10

// Explain tells step by step how the route came about, in whole sentences
// for a person. It looks everything up again: not for the path of a
// connection.
func (r Route) Explain() []string {
	switch {
	case r.snapshot == nil:
		return []string{"Nothing was resolved."}
	case r.Refusal == Loop:
		return []string{fmt.Sprintf("%s is the proxy's own port in this pod: refused, it would lead back to the proxy.", r.Destination)}
	case r.Refusal == NotReady:
		return []string{"The control plane has not sent its first full list of workloads and services: nothing may leave until it has."}
	case r.waypoints != nil:
		return r.explainWaypoints()
	case r.workload != nil:
		return []string{
			fmt.Sprintf("%s is the address of pod %s/%s.", r.Destination.Addr(), r.workload.Namespace, r.workload.Name),
			r.howReached(r.workload, r.Destination.Port()),
		}
	case r.Service == nil:
		return r.explainUnknown()
	}
	return append(r.explainService(), r.explainEndpoints()...)
}

// explainWaypoints covers what does not go straight to its destination.
func (r Route) explainWaypoints() []string {
	whose := fmt.Sprintf("%s is the address of a pod", r.Destination.Addr())
	if r.Service != nil {
		whose = fmt.Sprintf("%s is a virtual address of service %s", r.Destination.Addr(), r.Service.Key())
	}
	var names []string
	for _, g := range r.waypoints {
		names = append(names, g.String())
	}
	steps := []string{fmt.Sprintf("%s that is behind the waypoint %s, which decides where it goes from there.", whose, strings.Join(names, " or "))}
	for c := range r.Candidates(0) {
		if len(steps) > explained {
			return append(steps, "Further pods of it may be used as well.")
		}
		steps = append(steps, fmt.Sprintf("Pod %s/%s of it is reached at %s by mutual TLS, as %s.", c.Workload.Namespace, c.Workload.Name, c.Dial(), c.Workload.Identity()))
	}
	if len(steps) == 1 {
		steps = append(steps, "No pod of it is there and may be used: refused.")
	}
	return steps
}

// explainUnknown covers a destination that nothing is visible at.
func (r Route) explainUnknown() []string {
	steps := []string{fmt.Sprintf("%s is the address of no pod and of no service that namespace %q can see.", r.Destination.Addr(), r.source.Namespace)}
	for _, v := range r.snapshot.ServicesAt(r.source.network(), r.Destination.Addr()) {
		steps = append(steps, fmt.Sprintf("Service %s has it, but is visible to its own namespace only.", v.Key()))
	}
	return append(steps, fmt.Sprintf("The connection goes on to %s as plain TCP.", r.Destination))
}

func (r Route) explainService() []string {
	v, steps := r.Service, []string{}
	steps = append(steps, fmt.Sprintf("%s is a virtual address of service %s.", r.Destination.Addr(), v.Key()))
	if others := len(r.snapshot.ServicesAt(r.source.network(), r.Destination.Addr())) - 1; others > 0 {
		why := "it is the first by name"
		switch {
		case v.Namespace == r.source.Namespace:
			why = "it is in the client's namespace"
		case v.Canonical:
			why = "it is the canonical one"
		}
		steps = append(steps, fmt.Sprintf("%s with the same address: this one is used because %s.", count(others, "further service"), why))
	}
	switch {
	case v.Balance == model.BalancePassthrough:
		return append(steps, fmt.Sprintf("The service asks for no choice of endpoint: the connection goes on to %s as plain TCP.", r.Destination))
	case r.Refusal == UnknownPort:
		return append(steps, fmt.Sprintf("The service has no port %d, only %s: refused.", r.Destination.Port(), portList(v.Ports)))
	case r.port.Target == 0:
		return append(steps, fmt.Sprintf("Port %d leads to a named port, which each endpoint resolves for itself.", r.port.Service))
	}
	return append(steps, fmt.Sprintf("Port %d leads to port %d, unless an endpoint has its own.", r.port.Service, r.port.Target))
}

func (r Route) explainEndpoints() []string {
	if r.Refusal == UnknownPort || r.Service.Balance == model.BalancePassthrough {
		return nil
	}
	var unfit []string
	total, usable := 0, 0
	for e := range r.snapshot.Endpoints(r.Service.Key()) {
		total++
		if _, _, why := r.consider(e); why == "" {
			usable++
		} else if len(unfit) < explained {
			unfit = append(unfit, fmt.Sprintf("Endpoint %s/%s %s: left out.", e.Workload.Namespace, e.Workload.Name, why))
		}
	}
	if left := total - usable - len(unfit); left > 0 {
		unfit = append(unfit, fmt.Sprintf("%s left out as well.", count(left, "further endpoint")))
	}
	switch {
	case total == 0:
		return []string{"The service has no endpoint: refused."}
	case usable == 0:
		return append(unfit, "No endpoint may be used: refused.")
	}
	steps := append(unfit, fmt.Sprintf("%d of %s may be used, %s.", usable, count(total, "endpoint"), r.order()))
	named := 0
	for c := range r.Candidates(0) {
		if named++; named > explained {
			steps = append(steps, fmt.Sprintf("%s may be used as well.", count(usable-explained, "further endpoint")))
			break
		}
		steps = append(steps, r.explainCandidate(c))
	}
	return steps
}

func (r Route) explainCandidate(c Candidate) string {
	if b := c.Beyond(); b != nil {
		return fmt.Sprintf("In another network %s is reached by the gateway %s at %s, as %s, and by mutual TLS inside of that, as any of %v.",
			b.Authority, c.Workload.Name, c.Dial(), c.Workload.Identity(), b.Identities)
	}
	_, tier, _ := r.consider(r.endpoint(c.Workload))
	var notes []string
	if scopes := len(r.Service.Prefer); scopes > 0 && r.Service.Balance == model.BalanceFailover {
		notes = append(notes, fmt.Sprintf("matches %d of %s of the locality preference", scopes-tier%tierTerminating, count(scopes, "scope")))
	}
	if c.Workload.Terminating {
		notes = append(notes, "terminating, so after all others")
	}
	if c.Workload.Capacity != 1 {
		notes = append(notes, fmt.Sprintf("capacity %d", c.Workload.Capacity))
	}
	if len(notes) == 0 {
		return r.howReached(c.Workload, c.Target.Port())
	}
	return strings.TrimSuffix(r.howReached(c.Workload, c.Target.Port()), ".") + " (" + strings.Join(notes, "; ") + ")."
}

func (r Route) endpoint(w *model.Workload) model.Endpoint {
	return model.Endpoint{Workload: w, Ports: w.Services[r.Service.Key()]}
}

func (r Route) order() string {
	order := "tried in random order by capacity"
	if r.Service.Affinity > 0 {
		order = fmt.Sprintf("tried in an order fixed by the client's address %s (ClientIP affinity)", r.source.Address)
	}
	switch r.Service.Balance {
	case model.BalanceFailover:
		return order + " among those nearest by the locality preference, which come first"
	case model.BalanceStrict:
		return order + " among those in the required locality"
	}
	return order
}

func (r Route) howReached(w *model.Workload, port uint16) string {
	name := fmt.Sprintf("%s/%s", w.Namespace, w.Name)
	switch means(w, port) {
	case Unmeshed:
		if w.Bypass != "" {
			return fmt.Sprintf("Pod %s is under bypass %s: port %d is reached by plain TCP.", name, w.Bypass, port)
		}
		return fmt.Sprintf("Pod %s is not captured: port %d is reached by plain TCP.", name, port)
	case Skipped:
		return fmt.Sprintf("Pod %s skips inbound capture of %s: port %d is reached by plain TCP.", name, w.SkipInbound, port)
	}
	return fmt.Sprintf("Pod %s is captured: port %d is reached by mutual TLS, as %s.", name, port, w.Identity())
}

func portList(ports []model.Port) string {
	if len(ports) == 0 {
		return "none at all"
	}
	var names []string
	for _, p := range ports {
		names = append(names, fmt.Sprint(p.Service))
	}
	return strings.Join(names, ", ")
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
