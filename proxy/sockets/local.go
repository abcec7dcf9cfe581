package sockets

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

// LocalPod is a pod together with a way into its network namespace.
type LocalPod struct {
	Pod
	// Enter runs a function on a thread inside the namespace.
	Enter func(func() error) error
	DNS   bool // make sockets for DNS queries, too
}

// Local is a provider that makes the sockets itself, which needs the agent's
// privileges: for tests and for a laptop. It installs no rules.
type Local struct {
	pods map[string]LocalPod
}

// NewLocal serves a fixed list of pods.
func NewLocal(pods []LocalPod) *Local {
	l := &Local{pods: make(map[string]LocalPod, len(pods))}
	for _, p := range pods {
		l.pods[p.UID] = p
	}
	return l
}

// Absence implements [Provider].
func (l *Local) Absence() time.Duration { return 0 }

// Run adds the pods, and removes them when the context has ended. A port
// already taken in one of them is an error.
func (l *Local) Run(ctx context.Context, h Handler) error {
	for uid, p := range l.pods {
		listeners, err := p.listen()
		if err != nil {
			return fmt.Errorf("pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		h.Add(p.Pod, listeners)
		defer func() {
			h.Remove(uid, true)
			listeners.Close()
		}()
	}
	h.Synced()
	<-ctx.Done()
	return ctx.Err()
}

func (p LocalPod) listen() (Listeners, error) {
	var fds []int
	err := p.Enter(func() error {
		for _, port := range []int{protocol.OutboundPort, protocol.PlaintextPort, protocol.HBONEPort} {
			fd, err := protocol.Listen(port)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		if !p.DNS {
			return nil
		}
		more, err := protocol.ListenDNS()
		fds = append(fds, more...)
		return err
	})
	if err != nil {
		protocol.CloseAll(fds)
		return Listeners{}, err
	}
	return newListeners(fds)
}

// Dial makes a socket and connects it.
func (l *Local) Dial(ctx context.Context, podUID string, src netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	src, dst, err := unmapped(src, dst)
	if err != nil {
		return nil, err
	}
	p, ok := l.pods[podUID]
	if !ok {
		return nil, fmt.Errorf("dial %v: no pod with UID %q", dst, podUID)
	}
	fd := -1
	err = p.Enter(func() (err error) {
		fd, err = protocol.NewDialing(familyOf(dst.Addr()))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial %v: %w", dst, err)
	}
	return connect(ctx, fd, src, dst, false)
}
