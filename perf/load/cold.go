package load

import (
	"context"
	"time"

	"github.com/tacit-mesh/tacit/test/world"
)

// sharedPort is where proxies that share a connection among several of their
// pod's have it: HBONE's.
const sharedPort = 15008

// cold opens connections like connect, one after the other, each when no proxy
// in this network namespace has a connection to the far side: each takes a
// handshake. It needs CAP_NET_ADMIN.
func cold(ctx context.Context, c *client) error {
	for time.Now().Before(c.end) {
		if err := world.EndConnections(sharedPort); err != nil {
			return err
		}
		if err := c.connectOnce(ctx, time.Now()); err != nil {
			return err
		}
	}
	return nil
}
