package proxy

import (
	"context"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

// progressInterval is how often long connections' bytes reach the metrics, and
// hosts that decisions have turned away from are let go.
const progressInterval = 10 * time.Second

// reportProgress counts the bytes of live connections until the context ends, and
// lets go of the hosts that decisions no longer ask for, as nobody else may: the
// last policy that led to them may be gone.
func (p *Proxy) reportProgress(ctx context.Context) error {
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			p.hosts.letGo(now)
		case <-ctx.Done():
			return ctx.Err()
		}
		for _, c := range p.conns.Live() {
			c.mu.Lock()
			if c.opened && c.ended.IsZero() {
				sent, received := c.moved()
				p.Recorder.Progress(&c.record, sent, received)
			}
			c.mu.Unlock()
		}
	}
}

// PoolConnections counts the mTLS connections to peers.
func (p *Proxy) PoolConnections() int {
	connections, _ := p.pool.Stats()
	return connections
}

// Live lists the connections there are, for people.
func (p *Proxy) Live() []admin.Connection { return views(p.conns.Live()) }

// Ended lists the last ended ones, for people.
func (p *Proxy) Ended() []admin.Connection { return views(p.conns.Ended()) }

// Find lists the sides of one connection, for people.
func (p *Proxy) Find(id string) []admin.Connection { return views(p.conns.Find(id)) }

// LiveFlows yields the connections that carry bytes now, as flows.
func (p *Proxy) LiveFlows() iter.Seq[flows.Event] {
	return func(yield func(flows.Event) bool) {
		now := time.Now()
		for _, c := range p.conns.Live() {
			if e, live := c.flow(now); live && !yield(e) {
				return
			}
		}
	}
}

func (c *Connection) flow(now time.Time) (e flows.Event, live bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.opened || c.counts == nil {
		return e, false
	}
	e = c.record.Flow(flows.Live, now)
	e.Sent, e.Received = c.moved()
	return e, true
}

func views(list []*Connection) []admin.Connection {
	out := make([]admin.Connection, len(list))
	for i, c := range list {
		out[i] = c.view()
	}
	return out
}

func (c *Connection) view() admin.Connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := admin.Connection{
		ID:          c.record.ID,
		Direction:   c.record.Direction.String(),
		Source:      endView(c.record.Source),
		Destination: endView(c.record.Destination),
		Security:    c.record.Security.String(),
		Policy:      c.record.Policy,
		Denied:      c.record.Outcome == telemetry.Denied,
		Since:       c.record.Start,
		Ended:       c.ended,
	}
	if c.record.Direction == telemetry.Outbound {
		v.Original = c.original
		if s := c.record.Security; s == telemetry.MTLS || s == telemetry.Local {
			v.Tunnel = tunnelTo(c.record.Destination)
		}
	}
	if c.record.Service != nil {
		v.Destination.Service = c.record.Service.Hostname
	}
	if c.record.Err != nil {
		v.Reason = c.record.Err.Error()
	}
	v.Sent, v.Received = uint64(c.record.Sent), uint64(c.record.Received)
	if c.counts != nil {
		sent, received := c.moved()
		v.Sent, v.Received = uint64(sent), uint64(received)
	}
	return v
}

// tunnelTo is where the HBONE connection to an end goes: to its workload, which a
// waypoint or a gateway on the way is, too, with another address than the end's.
func tunnelTo(e telemetry.End) netip.AddrPort {
	addr := e.Addr.Addr()
	if w := e.Workload; w != nil && len(w.Addresses) > 0 && !slices.Contains(w.Addresses, addr) {
		addr = w.Addresses[0]
	}
	return netip.AddrPortFrom(addr, protocol.HBONEPort)
}

func endView(e telemetry.End) admin.End {
	v := admin.End{Address: e.Addr, Identity: e.Identity.String()}
	switch {
	case e.Workload != nil:
		v.Workload = e.Workload.Namespace + "/" + e.Workload.Name
	case e.Name != "":
		v.Workload = e.Namespace + "/" + e.Name
	}
	return v
}

// PodStatus is an enrolled pod, for people.
type PodStatus struct {
	Pod         string       `json:"pod"`
	UID         string       `json:"uid"`
	Identity    string       `json:"identity"`
	Addresses   []netip.Addr `json:"addresses"`
	Connections int          `json:"connections"`
}

// Pods lists the enrolled pods of the node, sorted by name.
func (p *Proxy) Pods() []PodStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]PodStatus, 0, len(p.pods))
	for _, pod := range p.pods {
		out = append(out, PodStatus{
			Pod: pod.Namespace + "/" + pod.Name, UID: pod.UID, Identity: pod.identity.String(), Addresses: pod.Addresses,
			Connections: int(pod.carried.Load()),
		})
	}
	slices.SortFunc(out, func(a, b PodStatus) int { return strings.Compare(a.Pod, b.Pod) })
	return out
}
