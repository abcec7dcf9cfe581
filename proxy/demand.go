package proxy

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/internal/portions"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/xds/model"
)

// This file is about names on demand: the control plane sends of workloads and
// services only what is asked for. What it has not spoken of is unknown, which
// is neither outside of the mesh nor in it: a connection waits for the answer to
// a deadline, and then goes nowhere.

// maxNames bounds the names that are held for connections, maxNamesOfPod those of
// one pod's. The control plane's client takes 20,000: what is left is for the
// hosts that decisions need, which take of no pod's share.
const (
	maxNames      = 15_000
	maxNamesOfPod = 5_000
)

// heldNames are those held for a pod's connections, each of which counts once.
type heldNames struct {
	mu      sync.Mutex
	holders map[string]int
}

// take reports whether there is room for the name; then give must follow.
func (n *heldNames) take(all *portions.Portions[*heldNames], name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.holders[name] == 0 && !all.Take(n, 1) {
		return false
	}
	n.holders[name]++
	return true
}

func (n *heldNames) give(all *portions.Portions[*heldNames], name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.holders[name]--; n.holders[name] == 0 {
		delete(n.holders, name)
		all.Give(n, 1)
	}
}

func (n *heldNames) taken() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.holders)
}

// holder keeps the names that a connection has to do with. Its goroutine alone
// uses it.
type holder struct {
	share *heldNames // of which the names take; nil: of none
	names map[string]func()
}

// hold reports whether the name is held; there may be room later.
func (h *holder) hold(p *Proxy, name string) bool {
	if _, held := h.names[name]; held {
		return true
	}
	if h.share != nil && !h.share.take(p.names, name) {
		return false
	}
	release, ok := p.Demand(name)
	if !ok {
		if h.share != nil {
			h.share.give(p.names, name)
		}
		return false
	}
	if h.names == nil {
		h.names = map[string]func(){}
	}
	h.names[name] = release
	return true
}

func (h *holder) release(p *Proxy) {
	if h == nil {
		return
	}
	for name, release := range h.names {
		release()
		if h.share != nil {
			h.share.give(p.names, name)
		}
	}
	h.names = nil
}

// lookForRoom is how often a name is tried again for which there was none: what
// makes room is not told.
const lookForRoom = 100 * time.Millisecond

// hear asks for the names that it is given by a snapshot, which may be more with
// each answer, and waits until all are answered, or for the context's end. It
// returns the newest snapshot.
func (p *Proxy) hear(ctx context.Context, h *holder, names func(*model.Snapshot) []string) *model.Snapshot {
	for {
		s, changed := p.State.Watch()
		unheard := false
		var room <-chan time.Time
		for _, name := range names(s) {
			if !h.hold(p, name) {
				room = time.After(lookForRoom)
			}
			unheard = unheard || !s.Heard(name)
		}
		if !unheard {
			return s
		}
		select {
		case <-changed:
		case <-room:
		case <-ctx.Done():
			return s
		}
	}
}

// sourceIn is where an outbound connection comes from, by a snapshot.
func (p *Proxy) sourceIn(s *model.Snapshot, c *Connection) route.Source {
	return route.Source{
		Workload: workloadOf(s, c.pod), Address: c.source().Addr(), Namespace: c.pod.Namespace, Node: p.Node, Network: p.Network,
	}
}

// lookUpSource asks who is at the other end of an inbound connection. It waits
// for the answer only where a policy is about it. Who comes in clear has no
// identity, without which policies believe no label: it is looked up for people.
// Whoever no policy is about may be what a later one is about. Both are asked for
// while there is room for more than that.
func (p *Proxy) lookUpSource(ctx context.Context, c *Connection) {
	if p.Demand == nil {
		return
	}
	name := func(s *model.Snapshot) string { return model.AddressName(networkOf(s, c.pod), c.source().Addr()) }
	if p.roomy(c) && (!c.peer().IsZero() || p.curious.Allow()) {
		c.whence.hold(p, name(p.State.Snapshot()))
	}
	p.hear(ctx, c.whence, func(s *model.Snapshot) []string {
		if !c.readsSource(s) {
			return nil
		}
		return []string{name(s)}
	})
}

// readsSource reports whether a policy is about who is at the other end.
func (c *Connection) readsSource(s *model.Snapshot) bool {
	w := workloadOf(s, c.pod)
	return !c.peer().IsZero() && w != nil && policy.ReadsLabels(s, w)
}

// forgetSource lets go of who is at the other end where no decision needs it. Of
// who has an identity a policy that comes later may be about the labels: to judge
// a live connection by it, they have to be known. Where there is no room for
// that, such a policy denies the connection.
func (p *Proxy) forgetSource(c *Connection) {
	if p.Demand != nil && !c.readsSource(p.State.Snapshot()) && (c.peer().IsZero() || !p.roomy(c)) {
		c.whence.release(p)
	}
}

// roomy reports whether there are names to be had for what no decision needs yet:
// less than half of them are taken, in all and of the pod's share.
func (p *Proxy) roomy(c *Connection) bool {
	return p.names.Taken() < maxNames/2 && c.whence.share.taken() < maxNamesOfPod/2
}

// explainTimeout is how long a denial waits for who it is that is denied.
const explainTimeout = 500 * time.Millisecond

// explainSource has a denial know who comes in clear, where that was asked for:
// the reason may be there, such as that the client skips the port.
func (p *Proxy) explainSource(ctx context.Context, c *Connection, r *policy.Request) {
	if p.Demand == nil || r.SourceWorkload != nil || len(c.whence.names) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	s := p.hear(ctx, c.whence, func(s *model.Snapshot) []string {
		return []string{model.AddressName(networkOf(s, c.pod), c.source().Addr())}
	})
	now, _ := c.facts(s, r.Time)
	r.SourceWorkload = now.SourceWorkload
}

// targetNames are those by which the control plane has to be asked whether a pod
// takes a stream for an authority: what is there, and by whose addresses the
// waypoint of that is named.
func targetNames(s *model.Snapshot, w *model.Workload, authority string, arrived netip.Addr) (names []string) {
	host, _, err := net.SplitHostPort(authority)
	if err != nil || w == nil || !s.OnDemand() {
		return nil
	}
	var services []*model.Service
	a, err := netip.ParseAddr(host)
	switch a = a.Unmap(); {
	case err == nil && (a == arrived || !a.IsGlobalUnicast() || a.Zone() != ""):
		return nil // it is the pod's own, or nobody's
	case err == nil:
		names = append(names, model.AddressName(w.Network, a))
		if of := s.WorkloadAt(w.Network, a); of != nil && of.Waypoint != nil {
			return appendAddressed(names, *of.Waypoint)
		}
		services = s.ServicesAt(w.Network, a)
	case isHostname(host):
		for key := range w.Services {
			if _, hostname, _ := strings.Cut(key, "/"); hostname == host {
				names = append(names, key)
			}
		}
		if name := serviceName(host); name != "" {
			names = append(names, name)
		}
		services = s.ServicesNamed(host)
	}
	for _, v := range services {
		for _, g := range v.Waypoints {
			names = appendAddressed(names, g.Gateway)
		}
	}
	return names
}

// appendAddressed adds the name of a gateway that is named by its address:
// whether a pod is one that is named by its service, the pod itself says.
func appendAddressed(names []string, g model.Gateway) []string {
	if g.Service == "" && g.Address.IsValid() {
		names = append(names, g.Name())
	}
	return names
}

// serviceName is the key of the service of Kubernetes with a hostname, which
// says its namespace; empty for any other.
func serviceName(host string) string {
	labels := strings.SplitN(host, ".", 4)
	if len(labels) < 4 || labels[2] != "svc" {
		return ""
	}
	return labels[1] + "/" + host
}

// hostName is by what the control plane is asked about a host that is to be
// called; empty for one that only the DNS knows.
func hostName(network, host string) string {
	if a, err := netip.ParseAddr(host); err == nil {
		return model.AddressName(network, a)
	}
	return serviceName(host)
}

// learnOf has the control plane say who is at a host that is to be called on
// behalf of a decision.
func (p *Proxy) learnOf(ctx context.Context, pod *pod, host string) {
	if p.Demand == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, decisionTimeout)
	defer cancel()
	var h holder
	defer h.release(p)
	s := p.hear(ctx, &h, func(s *model.Snapshot) []string {
		if name := hostName(networkOf(s, pod), host); name != "" {
			return []string{name}
		}
		return nil
	})
	if name := hostName(networkOf(s, pod), host); name != "" {
		p.hosts.keep(name, time.Now(), func() (func(), bool) { return p.Demand(name) })
	}
}

// keepHost is how long a host is held after a decision has asked for it, and
// maxHosts how many are: what decisions of today go on to ask for is not let go
// for want of room, and one that they have turned away from is.
const (
	keepHost = time.Minute
	maxHosts = 256
)

// keptHosts are the names of hosts that decisions ask for.
type keptHosts struct {
	mu    sync.Mutex
	names map[string]*keptHost
}

type keptHost struct {
	release func()
	used    time.Time
}

// letGo gives up the names that have not been kept for a while.
func (k *keptHosts) letGo(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, host := range k.names {
		if now.Sub(host.used) >= keepHost {
			host.release()
			delete(k.names, name)
		}
	}
}

// keep holds a name until it has not been kept for a while. It makes room first.
func (k *keptHosts) keep(name string, now time.Time, hold func() (release func(), ok bool)) {
	k.letGo(now)
	k.mu.Lock()
	defer k.mu.Unlock()
	host := k.names[name]
	if host == nil {
		if len(k.names) >= maxHosts {
			return // it is asked for each time
		}
		release, ok := hold()
		if !ok {
			return
		}
		host = &keptHost{release: release}
		k.names[name] = host
	}
	host.used = now
}
