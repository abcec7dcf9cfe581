package sockets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

const helloTimeout = 5 * time.Second

// serve is one connection to an agent, from its checks to its end.
func (a *Agent) serve(ctx context.Context) error {
	c, err := a.connectToAgent(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()

	version, err := a.hello(c)
	if err != nil {
		return err
	}
	session := a.begin()
	defer a.end()
	if err := a.offer(c, version); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	// Each ends the other, which may be in the middle of a send or a receive.
	g.Go(func() error {
		defer c.Close()
		return a.write(ctx, c, session)
	})
	g.Go(func() error {
		defer c.Close()
		return a.read(c, session)
	})
	return g.Wait()
}

// connectToAgent makes sure that what answers is the agent: nobody else can
// put a socket into a directory that only this user may enter, and nobody but
// the agent's user may answer on it.
func (a *Agent) connectToAgent(ctx context.Context) (*protocol.Conn, error) {
	dir := filepath.Dir(a.cfg.Socket)
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("directory of the agent's socket: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || info.Mode().Perm()&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("directory %s of the agent's socket: must have mode 0700 and belong to user %d", dir, os.Geteuid())
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", a.cfg.Socket)
	if err != nil {
		return nil, fmt.Errorf("connect to the agent: %w", err)
	}
	uc := conn.(*net.UnixConn)
	uid, err := peerUID(uc)
	if err == nil && uid != a.cfg.AgentUID {
		err = fmt.Errorf("it runs as user %d, not as tacit-agent's user %d", uid, a.cfg.AgentUID)
	}
	if err != nil {
		uc.Close()
		return nil, fmt.Errorf("what answers on %s: %w", a.cfg.Socket, err)
	}
	return protocol.NewConn(uc), nil
}

func peerUID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); controlErr != nil {
		return -1, controlErr
	}
	if err != nil {
		return -1, os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	return int(cred.Uid), nil
}

// hello agrees on the version of the protocol.
func (a *Agent) hello(c *protocol.Conn) (version uint32, err error) {
	a.mu.Lock()
	own := &protocol.Hello{Version: protocol.Version, Draining: a.drained || !a.leaving.IsZero()}
	a.mu.Unlock()
	if err := c.Send(&protocol.FromProxy{Message: &protocol.FromProxy_Hello{Hello: own}}); err != nil {
		return 0, err
	}
	c.SetReadDeadline(time.Now().Add(helloTimeout))
	m, fds, err := c.ReceiveFromAgent()
	if err != nil {
		return 0, fmt.Errorf("the agent's greeting: %w", err)
	}
	protocol.CloseAll(fds)
	if m.GetHello() == nil {
		return 0, fmt.Errorf("the agent's greeting is a %T", m.Message)
	}
	version, err = protocol.Agree(protocol.Version, m.GetHello().GetVersion())
	c.SetReadDeadline(time.Time{})
	return version, err
}

func (a *Agent) begin() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.session++
	a.unsent = a.saved != nil
	a.wakeWriter()
	return a.session
}

// end forgets what the agent still owed.
func (a *Agent) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left.IsZero() {
		a.left = time.Now()
	}
	a.alone = time.Now()
	for _, p := range a.pods {
		for _, pool := range p.pools {
			pool.forgetAsked(&a.spares)
		}
	}
}

// offer gives a restarted agent the listeners back. Only the goroutine of a
// session closes these descriptors, so they cannot change under it.
func (a *Agent) offer(c *protocol.Conn, version uint32) error {
	offers := map[string][]int{}
	a.mu.Lock()
	for uid, p := range a.pods {
		if len(p.fds) > 0 {
			offers[uid] = p.fds
			if version < protocol.HandsDNS {
				offers[uid] = p.fds[:protocol.ListenersPerPod]
			}
		}
	}
	a.mu.Unlock()
	for uid, fds := range offers {
		m := &protocol.FromProxy{Message: &protocol.FromProxy_Offer{Offer: &protocol.Offer{Uid: uid}}}
		if err := c.Send(m, fds...); err != nil {
			return err
		}
	}
	return c.Send(&protocol.FromProxy{Message: &protocol.FromProxy_Offered{Offered: &protocol.Offered{}}})
}

// write sends whatever is due, whenever there may be something.
func (a *Agent) write(ctx context.Context, c *protocol.Conn, session uint64) error {
	announced := false
	for {
		select {
		case <-a.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
		a.mu.Lock()
		var save *state
		var sent chan struct{}
		if a.unsent {
			save, sent, a.unsent, a.sent = a.saved, a.sent, false, nil
		}
		ready := a.ready == session && !a.drained && a.leaving.IsZero() && !announced
		wants := a.wants(session)
		a.mu.Unlock()

		if save != nil {
			if err := save.send(c); err != nil {
				return err
			}
			if sent != nil {
				close(sent)
			}
		}
		if ready {
			announced = true
			if err := c.Send(&protocol.FromProxy{Message: &protocol.FromProxy_Ready{Ready: &protocol.Ready{}}}); err != nil {
				return err
			}
		}
		for _, w := range wants {
			if err := c.Send(&protocol.FromProxy{Message: &protocol.FromProxy_Want{Want: w}}); err != nil {
				return err
			}
		}
	}
}

// wants lists what to ask for now. Pods that this session's agent has not
// named yet wait until it has.
func (a *Agent) wants(session uint64) []*protocol.Want {
	var wants []*protocol.Want
	for uid, p := range a.pods {
		if p.session != session {
			continue
		}
		for _, pool := range p.pools {
			for n := pool.ask(&a.spares); n > 0; n -= protocol.MaxWant {
				wants = append(wants, &protocol.Want{Uid: uid, Family: pool.family, Count: uint32(min(n, protocol.MaxWant))})
			}
		}
	}
	return wants
}

func (a *Agent) read(c *protocol.Conn, session uint64) error {
	for {
		m, fds, err := c.ReceiveFromAgent()
		if err != nil {
			return err
		}
		switch x := m.Message.(type) {
		case *protocol.FromAgent_Restore:
			a.takeRestore(fds)
		case *protocol.FromAgent_Add:
			err = a.addPod(x.Add, fds, session)
		case *protocol.FromAgent_Remove:
			a.removePod(x.Remove.GetUid(), x.Remove.GetGone())
		case *protocol.FromAgent_Synced:
			a.synced(session)
		case *protocol.FromAgent_Sockets:
			a.takeSockets(x.Sockets, fds)
		case *protocol.FromAgent_Keep:
			a.keepPod(x.Keep.GetUid(), session)
		case *protocol.FromAgent_Drain:
			a.drain()
			if x.Drain.GetEnd() {
				err = errSuperseded
			}
		}
		if err != nil {
			return err
		}
	}
}

func (a *Agent) takeRestore(fds []int) {
	select {
	case <-a.reached: // ours is newer than what an agent may have
		protocol.CloseAll(fds)
		return
	default:
	}
	if len(fds) == 1 {
		a.restored, a.restore = readState(fds[0])
	}
	close(a.reached)
}

func (a *Agent) addPod(m *protocol.AddPod, fds []int, session uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	facts := podOf(m)
	p, known := a.pods[facts.UID]
	if a.drained {
		protocol.CloseAll(fds)
		if known {
			p.session = session
			a.wakeWriter()
		}
		return nil
	}
	if known && sameSockets(p.fds, fds) {
		p.session = session
		a.wakeWriter()
		if samePod(p.Pod, facts) {
			protocol.CloseAll(fds)
			return nil
		}
		// Closing the earlier descriptors of the same listeners ends what
		// serves them with the earlier facts.
		listeners, err := newListeners(fds)
		if err != nil {
			return fmt.Errorf("pod %s/%s: %w", facts.Namespace, facts.Name, err)
		}
		p.Pod, p.listeners = facts, listeners
		a.feed.add(facts, listeners)
		return nil
	}
	copies, err := protocol.Duplicate(fds)
	if err != nil {
		protocol.CloseAll(fds)
		return fmt.Errorf("pod %s/%s: %w", facts.Namespace, facts.Name, err)
	}
	listeners, err := newListeners(fds)
	if err != nil {
		protocol.CloseAll(copies)
		return fmt.Errorf("pod %s/%s: %w", facts.Namespace, facts.Name, err)
	}
	if known { // the sockets of its earlier namespace are of no use
		p.close(&a.spares, errors.New("the pod's network namespace was replaced"))
	}
	p = &pod{Pod: facts, listeners: listeners, fds: copies, session: session}
	for _, addr := range facts.Addresses {
		p.pool(familyOf(addr))
	}
	a.pods[facts.UID] = p
	a.feed.add(facts, listeners)
	a.wakeWriter()
	return nil
}

func podOf(m *protocol.AddPod) Pod {
	p := Pod{
		UID: m.GetUid(), Name: m.GetName(), Namespace: m.GetNamespace(), ServiceAccount: m.GetServiceAccount(),
		TrustDomain: m.GetTrustDomain(), Labels: m.GetLabels(), Composition: m.Composition(), NoLoopbackRoute: m.GetNoLoopbackRoute(),
	}
	for _, b := range m.GetAddresses() {
		if addr, ok := netip.AddrFromSlice(b); ok {
			p.Addresses = append(p.Addresses, addr)
		}
	}
	return p
}

func samePod(x, y Pod) bool {
	return x.Name == y.Name && x.Namespace == y.Namespace && x.ServiceAccount == y.ServiceAccount &&
		x.TrustDomain == y.TrustDomain && slices.Equal(x.Addresses, y.Addresses) && maps.Equal(x.Labels, y.Labels) &&
		x.Composition.Equal(y.Composition) && x.NoLoopbackRoute == y.NoLoopbackRoute
}

// keepPod notes that the agent knows the pod, which it cannot add.
func (a *Agent) keepPod(uid string, session uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p, ok := a.pods[uid]; ok {
		p.session = session
		a.wakeWriter()
	}
}

func (a *Agent) removePod(uid string, gone bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p, ok := a.pods[uid]; ok {
		p.close(&a.spares, errors.New("the pod is no longer captured"))
		delete(a.pods, uid)
		a.feed.remove(uid, gone)
	}
}

// synced ends the list of a session: what it did not name is gone.
func (a *Agent) synced(session uint64) {
	var missing []string
	a.mu.Lock()
	if !a.left.IsZero() {
		a.absence += time.Since(a.left)
		a.left = time.Time{}
	}
	for uid, p := range a.pods {
		if p.session != session {
			missing = append(missing, uid)
		}
	}
	a.mu.Unlock()
	for _, uid := range missing {
		a.removePod(uid, true)
	}
	a.feed.synced(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.ready = session
		a.wakeWriter()
	})
}

func (a *Agent) takeSockets(m *protocol.Sockets, fds []int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := a.pods[m.GetUid()]
	if !ok {
		protocol.CloseAll(fds)
		return
	}
	var err error
	if m.GetError() != "" {
		err = fmt.Errorf("the agent could not make a socket in the pod: %s", m.GetError())
		a.cfg.Log.Warn("no dialing sockets", zap.String("pod", p.Namespace+"/"+p.Name), zap.Error(err))
	}
	p.pool(m.GetFamily()).put(&a.spares, int(m.GetCount()), fds, err)
	a.wakeWriter()
}

// drain leaves every new connection to the newer proxy.
func (a *Agent) drain() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.drained {
		return
	}
	a.closeListeners()
	close(a.draining)
}
