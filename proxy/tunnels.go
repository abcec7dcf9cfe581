package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/xds/model"
)

// key separates connections: one is shared only by streams that agree in
// every part of it.
func (p *Proxy) key(c *Connection, to route.Candidate) hbone.Key {
	return tunnelKey(c.pod, c.sourceFor(to.Dial()), to)
}

func tunnelKey(from *pod, source netip.Addr, to route.Candidate) hbone.Key {
	var accepted []string
	for _, id := range to.Identities() {
		accepted = append(accepted, id.String())
	}
	slices.Sort(accepted)
	return hbone.Key{
		SourceUID:      from.UID,
		Source:         source,
		Identity:       from.identity,
		DestinationUID: tunnelUID(to.Workload, to.ByGateway()),
		Destination:    to.Dial(),
		Accepted:       strings.Join(accepted, ","),
	}
}

const gatewayMark = "gateway "

// tunnelUID tells a pod from the one that had its name before. Gateways speak
// HBONE by themselves, captured or not.
func tunnelUID(w *model.Workload, gateway bool) string {
	uid := w.UID + "/" + w.PodUID
	if gateway {
		return gatewayMark + uid
	}
	return uid
}

// dialPeer opens the TCP connection of a pooled one, inside the source pod.
func (p *Proxy) dialPeer(ctx context.Context, k hbone.Key) (*net.TCPConn, error) {
	return p.Sockets.Dial(ctx, k.SourceUID, k.Source, k.Destination)
}

// peerTLS authenticates a pooled connection: as the source pod, to one of the
// accepted identities.
func (p *Proxy) peerTLS(ctx context.Context, k hbone.Key) (*tls.Config, time.Time, error) {
	pod := p.localPod(k.SourceUID)
	if pod == nil {
		return nil, time.Time{}, fmt.Errorf("certificate for %s: its pod is no longer captured", k.Identity)
	}
	return p.tlsAs(ctx, pod, strings.Split(k.Accepted, ","))
}

// tlsAs authenticates a pod to one of the accepted identities. It also says when
// the certificate ends.
func (p *Proxy) tlsAs(ctx context.Context, pod *pod, accepted []string) (*tls.Config, time.Time, error) {
	material, err := pod.claim.Get(ctx)
	if err != nil {
		return nil, time.Time{}, err
	}
	config := identity.ClientConfig(material, accepted, identity.WithRevocations(p.Revocations), p.trustDomains(ctx, pod))
	return config, material.NotAfter(), nil
}

// open begins a stream to a candidate, of a pooled connection or, into another
// network, of one of its own through the gateway.
func (p *Proxy) open(a *attempt, to route.Candidate, r hbone.Request) (*hbone.Stream, error) {
	beyond := to.Beyond()
	if beyond == nil {
		return p.pool.Open(a.context(), p.key(a.Connection, to), r)
	}
	var accepted []string
	for _, id := range beyond.Identities {
		accepted = append(accepted, id.String())
	}
	config, notAfter, err := p.tlsAs(a.context(), a.pod, accepted)
	if err != nil {
		return nil, err
	}
	outer := hbone.Request{Authority: beyond.Authority, Headers: r.Headers}
	r.Authority = beyond.Authority
	if w := a.record.Source.Workload; w != nil {
		r.Headers = append(slices.Clip(r.Headers), hbone.Header{Name: networkHeader, Value: w.Network})
	}
	return p.pool.OpenThrough(a.context(), p.key(a.Connection, to), outer, hbone.Inner{TLS: config, NotAfter: notAfter, Request: r})
}

// evictMoved lets pooled connections end with their last stream once their
// address is no longer that of the very pod that they lead to, or that pod
// takes none any more.
func (p *Proxy) evictMoved(ctx context.Context) error {
	for {
		snapshot, changed := p.State.Watch()
		p.pool.Evict(func(k hbone.Key) bool { return moved(snapshot, k) }, false)
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// moved reports whether a connection no longer leads to the pod that it was
// opened to. Pods on their node's network are found at no address, which they
// have in common.
func moved(s *model.Snapshot, k hbone.Key) bool {
	uid, gateway := strings.CutPrefix(k.DestinationUID, gatewayMark)
	w := s.Workload(uid[:strings.LastIndexByte(uid, '/')])
	switch {
	case w == nil || k.DestinationUID != tunnelUID(w, gateway):
		return true
	case !gateway && w.Protocol != model.ProtocolHBONE:
		return true
	case w.HostNetwork:
		return !w.HasAddress(k.Destination.Addr())
	}
	return s.WorkloadAt(w.Network, k.Destination.Addr()) != w
}
