// Package sockets is the data plane's only door to sockets inside pods.
//
// The proxy has no privileges: listeners and dialing sockets are made for it
// by whoever has (the node's agent; in tests, a privileged process itself)
// and arrive here as descriptors. What does not belong here: deciding who may
// connect where, and any byte of a connection.
package sockets

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Pod is an enrolled pod of this node, as the agent knows it. Its facts are
// the agent's, verified against the pod's network namespace, and suffice for
// outbound traffic before the control plane has said anything.
type Pod struct {
	UID            string // metadata.uid
	Name           string
	Namespace      string
	ServiceAccount string
	TrustDomain    string
	Addresses      []netip.Addr
	Labels         map[string]string // nil where the agent does not tell
	Composition    model.Composition // zero where the agent does not tell
	// NoLoopbackRoute says that the rules in the pod are not the agent's:
	// sockets bound to the loopback device reach no application.
	NoLoopbackRoute bool
}

// Listeners are a pod's three captured ports. Accepted connections are
// *net.TCPConn; SO_ORIGINAL_DST on those of Outbound and Plaintext gives the
// original destination. They are open as long as the pod is: closing them is
// the provider's work, after Handler.Remove has returned.
type Listeners struct {
	Outbound  net.Listener // 15001
	Plaintext net.Listener // 15006
	HBONE     net.Listener // 15008
	DNS       *DNS         // 15053; nil of a pod whose queries are not captured
}

// DNS are the sockets where a pod's DNS queries arrive, bound to the loopback
// addresses: a UDP and a TCP one for each family that the pod has.
type DNS struct {
	UDP []*Packets
	TCP []net.Listener
}

// Handler is told about pods, one call at a time; a call may take time
// without delaying the provider's other work.
type Handler interface {
	// Add says that the pod is captured. An Add of a UID that is already
	// there replaces facts and listeners.
	Add(Pod, Listeners)
	// Remove says that the pod is gone or no longer captured: its
	// listeners are about to close. Established connections of an
	// un-enrolled pod go on; those of a pod that is gone end within 5 s.
	Remove(uid string, gone bool)
	// Synced says that every pod of the first full list has been added.
	Synced()
}

// Provider hands over sockets.
type Provider interface {
	// Run reports pods until the context ends. It reconnects to the agent
	// by itself; pods stay while the agent is away.
	Run(context.Context, Handler) error
	// Dial connects to dst from inside the pod's network namespace, by a
	// socket that capture leaves alone. A valid src is the foreign source
	// address to use (transparent), with any port. It waits for a socket
	// until the context ends.
	Dial(ctx context.Context, podUID string, src netip.Addr, dst netip.AddrPort) (*net.TCPConn, error)
	// Absence is how long altogether there has been nobody to make sockets
	// with: it grows while the agent is away.
	Absence() time.Duration
}
