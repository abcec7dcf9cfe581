package proxy

import (
	"fmt"
	"net"

	"github.com/tacit-mesh/tacit/proxy/relay"
	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
)

// plaintext carries one connection that reached a local pod without mTLS: the
// same as inbound, without an identity.
func (p *Proxy) plaintext(pod *pod, client *net.TCPConn) {
	c := p.begin(pod, client, telemetry.Inbound)
	defer p.carried(pod, pod.share.inbound)
	defer p.end(c)

	dst, err := sockets.OriginalDst(client)
	switch {
	case err != nil:
	case route.OwnPort(dst.Port()):
		err = fmt.Errorf("connection to %v, a port of the proxy itself", dst)
	case !pod.has(dst.Addr()):
		// A neighbor on the pod's link can send it packets for any address,
		// its loopback included.
		err = fmt.Errorf("connection to %v, which is not the pod's", dst)
	}
	if err != nil {
		c.fail("bad_request", err)
		return
	}
	c.setDestination(dst)
	p.carryPlaintext(c)
}

// carryPlaintext decides on a connection to where it goes, and carries it.
func (p *Proxy) carryPlaintext(c *Connection) {
	if !p.authorize(c) {
		return
	}
	app, err := p.dialApp(c)
	if err != nil {
		if !c.revoked() {
			c.fail("application_unavailable", err)
		}
		return
	}
	counts := new(relay.Counts)
	p.opening(c, telemetry.Plain, counts)
	if c.requests != nil {
		c.closed(p.servePlain(c, c.conn, app, counts))
		return
	}
	c.closed(relay.Copy(c.context(), c.conn, app, counts))
}
