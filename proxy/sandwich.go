package proxy

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/model"
)

// dial connects to what a stream is for.
func (p *Proxy) dial(c *Connection, to target) (*net.TCPConn, error) {
	if !to.named.IsValid() {
		return p.dialApp(c)
	}
	return p.dialTunnel(c, to)
}

// dialTunnel connects to an application that takes what is meant for others, a
// waypoint, and tells it who comes, and where to. Such a port is on the
// loopback device, so that nobody can tell it anything but this proxy.
func (p *Proxy) dialTunnel(c *Connection, to target) (*net.TCPConn, error) {
	defer c.phase(telemetry.PhaseDial)()
	ctx, cancel := p.withTimeoutAnd(c.context(), dialTimeout, c.working)
	defer cancel()
	at := to.dst
	if to.tunnel { // at any other port the peer could reach what is for the pod alone
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if to.dst.Addr().Is6() {
			loopback = netip.IPv6Loopback()
		}
		at = netip.AddrPortFrom(loopback, to.dst.Port())
	}
	app, err := p.Sockets.Dial(ctx, c.pod.UID, netip.Addr{}, at)
	if err != nil {
		return nil, fmt.Errorf("connect to the application's tunnel at %v: %w", at, err)
	}
	// It is the first that is sent, and the kernel has room for more.
	if _, err := app.Write(proxyHeader(c.source(), to.named, c.peer(), to.service)); err != nil {
		reset(app)
		return nil, fmt.Errorf("tell the application's tunnel at %v who comes: %w", at, err)
	}
	if c.endCause() != nil { // denied meanwhile, or the pod is gone
		reset(app)
		return nil, c.endCause()
	}
	return app, nil
}

// The PROXY protocol, version 2 (haproxy.org, proxy-protocol.txt).
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 0x21 // version 2, on behalf of another
	proxyTCP4      = 0x11
	proxyTCP6      = 0x21
	// Istio's extensions: the source's SPIFFE id, and the hostname of the service
	// that was asked for.
	proxyIdentity = 0xd0
	proxyService  = 0xd1
)

// proxyHeader says on whose behalf a connection comes, and where it was to go.
func proxyHeader(src, dst netip.AddrPort, id model.Identity, service string) []byte {
	var body []byte
	family := byte(proxyTCP4)
	if src.Addr().Is4() && dst.Addr().Is4() {
		body = append(body, src.Addr().AsSlice()...)
		body = append(body, dst.Addr().AsSlice()...)
	} else {
		family = proxyTCP6
		for _, a := range [2]netip.Addr{src.Addr(), dst.Addr()} {
			b := a.As16() // an IPv4 address is mapped
			body = append(body, b[:]...)
		}
	}
	body = binary.BigEndian.AppendUint16(body, src.Port())
	body = binary.BigEndian.AppendUint16(body, dst.Port())
	if !id.IsZero() {
		body = appendExtension(body, proxyIdentity, id.String())
	}
	if service != "" {
		body = appendExtension(body, proxyService, service)
	}
	header := append([]byte(proxySignature), proxyCommand, family)
	header = binary.BigEndian.AppendUint16(header, uint16(len(body)))
	return append(header, body...)
}

func appendExtension(body []byte, kind byte, text string) []byte {
	body = append(body, kind)
	body = binary.BigEndian.AppendUint16(body, uint16(len(text)))
	return append(body, text...)
}
