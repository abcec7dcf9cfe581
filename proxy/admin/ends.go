package admin

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/xds/model"
)

// client is who connects: a pod, or a bare address outside the mesh.
type client struct {
	workload *model.Workload
	bare     netip.Addr
}

func (c client) String() string {
	if c.workload == nil {
		return c.bare.String()
	}
	return "pod " + podName(c.workload)
}

// address is the one from which the client would reach dst.
func (c client) address(dst netip.Addr) netip.Addr {
	if c.workload == nil {
		return c.bare
	}
	return addressLike(c.workload, dst)
}

func (c client) routeSource(dst netip.AddrPort) route.Source {
	src := route.Source{Workload: c.workload, Address: c.address(dst.Addr())}
	if c.workload != nil {
		src.Namespace, src.Node = c.workload.Namespace, c.workload.Node
	}
	return src
}

func addressLike(w *model.Workload, other netip.Addr) netip.Addr {
	for _, a := range w.Addresses {
		if !other.IsValid() || a.Is4() == other.Is4() {
			return a
		}
	}
	if len(w.Addresses) > 0 {
		return w.Addresses[0]
	}
	return netip.Addr{}
}

// source finds who "NAMESPACE/POD" or an address is.
func (e *explainer) source(from string) (client, error) {
	if a, err := netip.ParseAddr(from); err == nil {
		c := client{workload: e.snapshot.WorkloadAt(e.network, a.Unmap()), bare: a.Unmap()}
		if c.workload == nil {
			e.step("source", note, "%s is the address of no pod that the proxy knows.", a)
			return c, nil
		}
		from = podName(c.workload)
	}
	w := e.pod(from)
	if w == nil {
		return client{}, e.absent("client", from)
	}
	e.step("source", ok, "Pod %s on node %s has identity %s and addresses %s.", from, w.Node, w.Identity(), list(w.Addresses))
	return client{workload: w}, nil
}

func (e *explainer) absent(what, name string) error {
	return fmt.Errorf("%s %q: the proxy knows no pod or service of that name, among %d workloads and %d services of generation %d: write NAMESPACE/POD, and see `tacit dump` for what there is%s",
		what, name, len(e.snapshot.Workloads()), len(e.snapshot.Services()), e.snapshot.Generation(), didYouMean(e.snapshot, name))
}

// pod finds a workload by "NAMESPACE/NAME"; nil if there is none.
func (e *explainer) pod(name string) *model.Workload {
	all := e.snapshot.Workloads()
	i := slices.IndexFunc(all, func(w *model.Workload) bool { return podName(w) == name })
	if i < 0 {
		return nil
	}
	return all[i]
}

// destination finds the address that the client would connect to for
// "NAMESPACE/POD:PORT", "HOST:PORT" or "IP:PORT". A name that no service has may be
// that of a pod beside the client.
func (e *explainer) destination(src client, to string) (netip.AddrPort, error) {
	if dst, err := netip.ParseAddrPort(to); err == nil && dst.Port() != 0 {
		return netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()), nil
	}
	host, portText, err := net.SplitHostPort(to)
	port, portErr := strconv.ParseUint(portText, 10, 16)
	if err != nil || portErr != nil || port == 0 || host == "" {
		return netip.AddrPort{}, fmt.Errorf("destination %q: want NAMESPACE/POD:PORT, HOST:PORT or IP:PORT", to)
	}
	var addr netip.Addr
	if w := e.pod(host); w != nil {
		addr = addressLike(w, src.address(netip.Addr{}))
		e.step("destination", ok, "Pod %s has addresses %s.", host, list(w.Addresses))
	} else if v := e.service(src, host); v != nil {
		addr = e.serviceAddress(src, v, uint16(port))
	} else if w := e.pod(src.routeSource(netip.AddrPort{}).Namespace + "/" + host); w != nil {
		return e.destination(src, podName(w)+":"+portText)
	} else {
		return netip.AddrPort{}, e.absent("destination", host)
	}
	if !addr.IsValid() {
		return netip.AddrPort{}, fmt.Errorf("destination %q has no address and no endpoint with one", to)
	}
	return netip.AddrPortFrom(addr, uint16(port)), nil
}

// service finds one by hostname, or as DNS in the client's namespace would by
// "NAME", "NAME.NAMESPACE" and so on, or by "NAMESPACE/NAME".
func (e *explainer) service(src client, host string) *model.Service {
	own := src.routeSource(netip.AddrPort{}).Namespace
	for _, v := range e.snapshot.Services() {
		qualified := v.Name + "." + v.Namespace
		switch {
		case v.Private && v.Namespace != own:
		case host == v.Hostname, host == qualified, host == qualified+".svc", host == v.Namespace+"/"+v.Name,
			host == v.Name && own == v.Namespace:
			return v
		}
	}
	return nil
}

// serviceAddress is a virtual address of the service or, where it has none,
// the address of an endpoint, as DNS answers for a headless service.
func (e *explainer) serviceAddress(src client, v *model.Service, port uint16) netip.Addr {
	like := src.address(netip.Addr{})
	var found netip.Addr
	for _, a := range v.Addresses {
		if !found.IsValid() || a.Prefix.Addr().Is4() == like.Is4() && found.Is4() != like.Is4() {
			found = a.Prefix.Addr()
		}
	}
	if found.IsValid() {
		e.step("destination", ok, "Service %s has virtual address %s.", v.Key(), found)
		return found
	}
	for endpoint := range e.snapshot.Endpoints(v.Key()) {
		if a := addressLike(endpoint.Workload, like); a.IsValid() && (v.Unhealthy || !endpoint.Workload.Unhealthy) {
			e.step("destination", ok, "Service %s has no virtual address: clients get its endpoints' own, such as that of pod %s, and reach port %d there.",
				v.Key(), podName(endpoint.Workload), port)
			return a
		}
	}
	return netip.Addr{}
}

// capture says whether the client's connection reaches its node's proxy, and
// whether it stays inside the pod altogether.
func (e *explainer) capture(src client, dst netip.AddrPort) (captured, inside bool) {
	w := src.workload
	if dst.Addr().IsLoopback() || w != nil && !w.HostNetwork && w.HasAddress(dst.Addr()) {
		e.step("capture", note, "%s is the client itself: such connections are not captured.", dst.Addr())
		return false, true
	}
	why, remedy := uncaptured(w, dst)
	if why != "" {
		e.step("capture", note, "%s: its connection is plain TCP and has no identity.", why)
		e.identify = remedy
		return false, false
	}
	e.step("capture", ok, "Pod %s is captured and skips neither port %d nor %s: its connection reaches the proxy.", podName(w), dst.Port(), dst.Addr())
	return true, false
}

// uncaptured says why a client's connection does not reach its proxy, and
// what would change that; both are empty if it does.
func uncaptured(w *model.Workload, dst netip.AddrPort) (why, remedy string) {
	skipped := skippedBy(w)
	switch {
	case w == nil:
		return "The client is outside the mesh", "the client must be a captured pod"
	case w.HostNetwork:
		return fmt.Sprintf("Pod %s shares its node's network, which is never captured", podName(w)),
			fmt.Sprintf("pod %s must have a network of its own", podName(w))
	case w.Protocol != model.ProtocolHBONE && w.Bypass != "":
		return fmt.Sprintf("Pod %s is not captured, for bypass %s is in force", podName(w), w.Bypass),
			fmt.Sprintf("end bypass %s (tacit bypass end %s)", w.Bypass, w.Bypass)
	case w.Protocol != model.ProtocolHBONE:
		return fmt.Sprintf("Pod %s is not captured, for it is not enrolled, or its node's agent has not reported it", podName(w)),
			fmt.Sprintf("enrol pod %s (label tacit.mesh/dataplane: enabled)", podName(w))
	case w.SkipOutbound.Contains(dst.Port()):
		return fmt.Sprintf("Pod %s skips outbound capture of ports %s, which covers %d%s", podName(w), w.SkipOutbound, dst.Port(), by(skipped.Outbound)),
			fmt.Sprintf("take port %d out of the outbound skip list of pod %s%s", dst.Port(), podName(w), in(skipped.Outbound))
	}
	for _, p := range w.SkipOutboundCIDRs {
		if p.Contains(dst.Addr()) {
			return fmt.Sprintf("Pod %s skips outbound capture of %s, which covers %s%s", podName(w), p, dst.Addr(), by(skipped.OutboundCIDRs)),
				fmt.Sprintf("take %s out of the outbound skip list of pod %s%s", p, podName(w), in(skipped.OutboundCIDRs))
		}
	}
	return "", ""
}

// skippedBy names what a pod's lists of skips come from, as far as is known.
func skippedBy(w *model.Workload) (by model.SkippedBy) {
	if w != nil && w.SkippedBy != nil {
		by = *w.SkippedBy
	}
	return by
}

func by(annotation string) string {
	if annotation == "" {
		return ""
	}
	return ", by " + annotation
}

func in(annotation string) string {
	if annotation == "" {
		return ""
	}
	return ", in " + annotation
}

func list[T fmt.Stringer](items []T) string {
	if len(items) == 0 {
		return "none"
	}
	var out []string
	for _, item := range items {
		out = append(out, item.String())
	}
	return strings.Join(out, ", ")
}
