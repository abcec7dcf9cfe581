package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

const page = "Hello from the web pod"

// request calls nginx across nodes while everything that arrives at its node
// is captured.
func (d *Demo) request(ctx context.Context) error {
	client, server := d.world.Pod("shop/frontend"), d.world.Pod("shop/web")
	capture, err := startCapture(server.Node, append(client.Addresses, server.Addresses...))
	if err != nil {
		return err
	}
	defer capture.close()
	text, code, err := d.shell(ctx, client.Key, "curl -sS http://web/")
	if err != nil {
		return err
	}
	if code != 0 || !strings.Contains(text, page) {
		return fmt.Errorf("curl: exit code %d, want nginx's page", code)
	}
	seen, err := capture.finish()
	if err != nil {
		return err
	}
	c, err := newest(ctx, server.Node, "ended", client.Key, server.Key, func(c admin.Connection) bool { return !c.Denied })
	if err != nil {
		return err
	}
	if c.Source.Identity != identityOf(client.Key) || c.Destination.Identity != identityOf(server.Key) {
		return fmt.Errorf("identities %q and %q are not those of the pods", c.Source.Identity, c.Destination.Identity)
	}
	d.out.proven("node b verified both: %s called %s, allowed by policy %s", c.Source.Identity, c.Destination.Identity, c.Policy)
	return d.onlyTLS(seen)
}

// identityOf is the SPIFFE id of a pod whose account has its own name.
func identityOf(pod string) string {
	namespace, name, _ := strings.Cut(pod, "/")
	return "spiffe://cluster.local/ns/" + namespace + "/sa/" + name
}

// onlyTLS checks and shows what was on the wire.
func (d *Demo) onlyTLS(seen *traffic) error {
	summary, err := seen.checkTLS()
	if err != nil {
		return fmt.Errorf("on the wire between the nodes: %w", err)
	}
	if err := errors.Join(seen.without(page), seen.without("GET / HTTP"), seen.without("nginx")); err != nil {
		return err
	}
	d.out.proven("on the wire: %d packets, all on port %d; %d bytes, every one in a TLS record (%d of handshake, %d encrypted)",
		seen.packets, protocol.HBONEPort, summary.bytes, summary.handshake, summary.encrypted)
	d.out.proven("the server chose TLS 1.3 with %s; neither the request nor the page can be found in the bytes", summary.group)
	d.out.say("the page travelled in a record such as %s", summary.sample)
	return nil
}
