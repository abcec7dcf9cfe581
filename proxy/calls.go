package proxy

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/proxy/tracing"
	"github.com/tacit-mesh/tacit/xds/model"
)

// This file is about the proxy's own calls, to what decisions need: providers
// and stores of limits. What is in the mesh is called as the pod that the
// decision is for, with its identity and from its network namespace, over HBONE,
// as a sidecar would; whoever is called can authorize that by policies. All
// else is called from the proxy's own network namespace, over TLS where that is
// configured.

// callsAs is the UID of the pod as which a call to a host and port goes out on
// its behalf; empty if that is not in the mesh.
func (p *Proxy) callsAs(ctx context.Context, pod *pod, host string, port uint16) string {
	p.learnOf(ctx, pod, host)
	s := p.State.Snapshot()
	if _, inMesh := callee(s, networkOf(s, pod), host, port); inMesh {
		return pod.UID
	}
	return ""
}

// countsAs is the same for the store of a limit, on behalf of a pod.
func (p *Proxy) countsAs(pod *pod, a *policy.AppliedLimit) string {
	if a.Store == nil {
		return ""
	}
	return p.callsAs(pod.ctx, pod, a.Store.Host, a.Store.Port)
}

// callee is where a host and port are, seen from a network: at some healthy
// member of the service of this name if it is one's. It also says whether that
// takes HBONE. It is not valid where only the DNS may know.
func callee(s *model.Snapshot, network, host string, port uint16) (at netip.AddrPort, inMesh bool) {
	if a, err := netip.ParseAddr(host); err == nil {
		at = netip.AddrPortFrom(a.Unmap(), port)
	} else {
		at = endpoint(s, network, host, port)
	}
	w := s.WorkloadAt(network, at.Addr())
	return at, w != nil && w.Protocol == model.ProtocolHBONE
}

// endpoint is some healthy member of a service, in the same network: elsewhere
// its address may be that of another.
func endpoint(s *model.Snapshot, network, host string, port uint16) netip.AddrPort {
	for e, at := range members(s, network, host, port) {
		if !e.Workload.Unhealthy {
			return at
		}
	}
	return netip.AddrPort{}
}

// members are those of the service of this name in a network that take its port,
// and where.
func members(s *model.Snapshot, network, host string, port uint16) iter.Seq2[model.Endpoint, netip.AddrPort] {
	return func(yield func(model.Endpoint, netip.AddrPort) bool) {
		for _, v := range s.ServicesNamed(host) {
			for e := range s.Endpoints(v.Key()) {
				if e.Workload.Network != network || len(e.Workload.Addresses) == 0 {
					continue
				}
				if target := targetOf(port, e.Ports, v.Ports); target != 0 && !yield(e, netip.AddrPortFrom(e.Workload.Addresses[0], target)) {
					return
				}
			}
		}
	}
}

// targetOf is where a port of a service leads, by the first list that says so.
func targetOf(port uint16, lists ...[]model.Port) uint16 {
	for _, ports := range lists {
		for _, pt := range ports {
			if pt.Service == port && pt.Target != 0 {
				return pt.Target
			}
		}
	}
	return 0
}

// serves reports whether a call to a host and port may arrive at an address.
func serves(s *model.Snapshot, network string, at netip.AddrPort, host string, port uint16) bool {
	if a, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(a.Unmap(), port) == at
	}
	for e, to := range members(s, network, host, port) {
		if to.Port() == at.Port() && slices.Contains(e.Workload.Addresses, at.Addr()) {
			return true
		}
	}
	return false
}

// meshed reports whether a service has pods in the mesh, healthy or not: none
// may be asked in clear.
func meshed(s *model.Snapshot, host string) bool {
	for _, v := range s.ServicesNamed(host) {
		for e := range s.Endpoints(v.Key()) {
			if e.Workload.Protocol == model.ProtocolHBONE {
				return true
			}
		}
	}
	return false
}

// dialOut connects to "HOST:PORT", as a pod unless as is empty.
func (p *Proxy) dialOut(ctx context.Context, as, network, address string) (net.Conn, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	s := p.State.Snapshot()
	if as == "" {
		at, inMesh := callee(s, p.NodeNetwork(), host, uint16(port))
		name := hostName(p.NodeNetwork(), host)
		switch {
		case name != "" && !s.Heard(name):
			return nil, fmt.Errorf("%s: the control plane has not said yet whether it is in the mesh", address)
		case !at.IsValid() && meshed(s, host):
			return nil, fmt.Errorf("%s: no healthy pod of the service takes this port", address)
		case inMesh:
			return nil, fmt.Errorf("%s has joined the mesh meanwhile", address)
		case at.IsValid():
			address = at.String()
		}
		// Who asks over HTTP may have left: net/http goes on dialing for others.
		return (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, network, address)
	}
	pod := p.callingPod(as)
	if pod == nil {
		return nil, fmt.Errorf("call %s as pod %s: it is no longer captured", address, as)
	}
	at, inMesh := callee(s, networkOf(s, pod), host, uint16(port))
	if !inMesh {
		return nil, fmt.Errorf("%s has left the mesh meanwhile", address)
	}
	return p.dialAs(ctx, pod, at)
}

// endCalls ends the connections of calls as a pod.
func (p *Proxy) endCalls(as string) {
	p.providers.Forget(as)
	p.limits.Forget(as)
}

// dialAs connects to a pod of the mesh with the identity of a pod of this node.
func (p *Proxy) dialAs(ctx context.Context, pod *pod, at netip.AddrPort) (net.Conn, error) {
	s := p.State.Snapshot()
	var source netip.Addr
	for _, a := range pod.Addresses {
		if a.Is4() == at.Addr().Is4() {
			source = a
		}
	}
	from := route.Source{
		Workload: workloadOf(s, pod), Address: source, Namespace: pod.Namespace, Node: p.Node, Network: pod.network,
	}
	var held holder
	defer held.release(p)
	s = p.hear(ctx, &held, func(s *model.Snapshot) []string { return route.Names(s, from, at) })
	r := route.Resolve(s, from, at)
	err := fmt.Errorf("no route to %v: %v", at, r.Refusal)
	for to := range r.Candidates(rand.Uint64()) {
		if to.Means != route.HBONE || to.Beyond() != nil {
			continue // in clear it would have no identity
		}
		var stream *hbone.Stream
		if stream, err = p.pool.Open(ctx, tunnelKey(pod, source, to), hbone.Request{
			Authority: to.Target.String(), Headers: []hbone.Header{{Name: tracing.ParentHeader, Value: traceparent(tracing.NewTrace())}},
		}); err != nil {
			continue
		}
		if _, err = stream.Answer(ctx); err == nil {
			return stream.Conn(), nil
		}
		stream.Reset()
	}
	return nil, err
}
