package load

import (
	"context"
	"time"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/test/world"
)

// cold opens connections like connect, one after the other, each when no proxy
// in this network namespace has one to the far side that it shares, by HBONE:
// each takes a handshake. It needs CAP_NET_ADMIN.
func cold(ctx context.Context, c *client) error {
	for time.Now().Before(c.end) {
		if err := world.EndConnections(protocol.HBONEPort); err != nil {
			return err
		}
		if err := c.connectOnce(ctx, time.Now()); err != nil {
			return err
		}
	}
	return nil
}
