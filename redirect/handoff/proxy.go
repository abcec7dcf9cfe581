package handoff

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/redirect/netns"
)

const (
	helloTimeout = 5 * time.Second
	// maxProxies leaves room for one that serves, one that drains, one that
	// starts, and one whose end has not been seen yet.
	maxProxies = 4
)

// role is where a proxy is in its life.
type role uint8

const (
	starting role = iota // has not taken everything over yet
	active
	draining
	ended // told to give up, as another one drains
)

// proxy is one connected proxy. Its fields are guarded by Server.mu.
type proxy struct {
	pid     int
	conn    *protocol.Conn
	version uint32     // that both speak
	send    sync.Mutex // orders sends; never taken while Server.mu is held
	wake    chan struct{}
	role    role
	offered bool            // it has offered what it holds
	news    map[string]bool // pods that it has to hear of; true: gone if they are not there
	told    bool            // Synced has been sent
	drain   bool            // Drain is to be sent
	saved   int             // its memfd while it is starting, else -1
}

func (p *proxy) wakeWriter() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *proxy) sendMessage(m proto.Message, fds ...int) error {
	p.send.Lock()
	defer p.send.Unlock()
	return p.conn.Send(m, fds...)
}

// serve is one connection, from its checks to its end.
func (s *Server) serve(ctx context.Context, c *net.UnixConn) error {
	conn := protocol.NewConn(c)
	defer conn.Close()
	pid, err := s.checkPeer(c)
	if err != nil {
		return err
	}
	p := &proxy{pid: pid, conn: conn, wake: make(chan struct{}, 1), news: map[string]bool{}, saved: -1}
	if err := s.hello(p); err != nil {
		return err
	}
	if err := s.register(p); err != nil {
		return err
	}
	defer s.unregister(p)
	s.cfg.Log.Info("proxy connected", zap.Int("pid", p.pid))

	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	g.Go(func() error { return s.write(ctx, p) })
	g.Go(func() error { return s.read(p) })
	return g.Wait()
}

func (s *Server) hello(p *proxy) error {
	p.conn.SetReadDeadline(time.Now().Add(helloTimeout))
	m, fds, err := p.conn.ReceiveFromProxy()
	if err != nil {
		return fmt.Errorf("greeting of process %d: %w", p.pid, err)
	}
	protocol.CloseAll(fds)
	hello := m.GetHello()
	if hello == nil {
		return fmt.Errorf("greeting of process %d is a %T", p.pid, m.Message)
	}
	// The answer goes out even if the versions do not fit: so the proxy can
	// say what is wrong, too.
	if err := p.sendMessage(&protocol.FromAgent{Message: &protocol.FromAgent_Hello{Hello: &protocol.Hello{Version: protocol.Version}}}); err != nil {
		return err
	}
	if p.version, err = protocol.Agree(protocol.Version, hello.GetVersion()); err != nil {
		return err
	}
	p.conn.SetReadDeadline(time.Time{})
	if hello.GetDraining() {
		p.role = draining
	}
	return s.sendState(p)
}

// sendState hands over what the newest proxy has saved.
func (s *Server) sendState(p *proxy) error {
	m := &protocol.FromAgent{Message: &protocol.FromAgent_Restore{Restore: &protocol.Restore{}}}
	s.mu.Lock()
	var copies []int
	var err error
	if s.state >= 0 && p.role != draining {
		copies, err = protocol.Duplicate([]int{s.state})
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	defer protocol.CloseAll(copies)
	return p.sendMessage(m, copies...)
}

func (s *Server) register(p *proxy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.proxies) >= maxProxies {
		return fmt.Errorf("process %d: %d proxies are connected already", p.pid, maxProxies)
	}
	s.proxies[p] = struct{}{}
	return nil
}

func (s *Server) unregister(p *proxy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.proxies, p)
	protocol.CloseAll([]int{p.saved})
}

// write tells the proxy what it has to hear, once it has offered what it
// holds.
func (s *Server) write(ctx context.Context, p *proxy) error {
	for {
		select {
		case <-p.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := s.tellNews(p); err != nil {
			return err
		}
		s.mu.Lock()
		drain, end, synced := p.drain, p.role == ended, p.offered && s.synced && !p.told && len(p.news) == 0
		p.drain = false
		p.told = p.told || synced
		s.mu.Unlock()
		if synced {
			if err := p.sendMessage(&protocol.FromAgent{Message: &protocol.FromAgent_Synced{Synced: &protocol.Synced{}}}); err != nil {
				return err
			}
		}
		if drain {
			if err := p.sendMessage(&protocol.FromAgent{Message: &protocol.FromAgent_Drain{Drain: &protocol.Drain{End: end}}}); err != nil {
				return err
			}
		}
	}
}

func (s *Server) tellNews(p *proxy) error {
	s.mu.Lock()
	var uids []string
	if p.offered {
		uids = slices.Sorted(maps.Keys(p.news))
	}
	s.mu.Unlock()
	for _, uid := range uids {
		m, fds, err := s.newsOf(p, uid)
		if err == nil && m != nil {
			err = p.sendMessage(m, fds...)
		}
		protocol.CloseAll(fds)
		if err != nil {
			return err
		}
	}
	return nil
}

// newsOf is what to say about a pod as things are now; nil if nothing.
func (s *Server) newsOf(p *proxy, uid string) (*protocol.FromAgent, []int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone, due := p.news[uid]
	delete(p.news, uid)
	e, ok := s.pods[uid]
	switch {
	case !due:
		return nil, nil, nil
	case ok && (!e.complete() || e.kept):
		return &protocol.FromAgent{Message: &protocol.FromAgent_Keep{Keep: &protocol.KeepPod{Uid: uid}}}, nil, nil
	case !ok:
		return &protocol.FromAgent{Message: &protocol.FromAgent_Remove{Remove: &protocol.RemovePod{Uid: uid, Gone: gone}}}, nil, nil
	}
	listeners := e.listeners
	if p.version >= protocol.HandsDNS {
		listeners = slices.Concat(listeners, e.dns)
	}
	fds, err := protocol.Duplicate(listeners)
	if err != nil {
		return nil, nil, err
	}
	add := &protocol.AddPod{Uid: e.UID, Name: e.Name, Namespace: e.Namespace, ServiceAccount: e.ServiceAccount, TrustDomain: e.TrustDomain, NoLoopbackRoute: e.NoLoopbackRoute}
	for _, a := range e.Addresses {
		add.Addresses = append(add.Addresses, a.AsSlice())
	}
	if protocol.LengthOf(e.Labels) <= protocol.MaxLabels {
		add.Labels = e.Labels
	}
	if p.version >= protocol.Composes && protocol.LengthOfComposition(e.Composition) <= protocol.MaxComposition {
		add.Compose(e.Composition)
	}
	return &protocol.FromAgent{Message: &protocol.FromAgent_Add{Add: add}}, fds, nil
}

func (s *Server) read(p *proxy) error {
	for {
		m, fds, err := p.conn.ReceiveFromProxy()
		if err != nil {
			return err
		}
		switch x := m.Message.(type) {
		case *protocol.FromProxy_Offer:
			err = s.takeOffer(p, x.Offer.GetUid(), fds)
		case *protocol.FromProxy_Offered:
			s.offersDone(p)
		case *protocol.FromProxy_Ready:
			s.takeOver(p)
		case *protocol.FromProxy_Want:
			err = s.sendSockets(p, x.Want)
		case *protocol.FromProxy_Save:
			err = s.keepState(p, fds[0])
		}
		if err != nil {
			return err
		}
	}
}

// takeOffer takes listeners for a pod that lacks them, or puts them by for
// one that is not known yet: this agent may only just be starting.
func (s *Server) takeOffer(p *proxy, uid string, fds []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.pods[uid]; ok {
		if s.adopt(e, fds) {
			s.changed(uid, false)
		}
		return nil
	}
	if _, have := s.offers[uid]; have || s.synced {
		protocol.CloseAll(fds)
		return nil
	}
	if p.offered || len(s.offers) >= protocol.MaxPods || s.trust && len(s.pods) >= protocol.MaxPods {
		protocol.CloseAll(fds)
		return errors.New("more offers than there can be pods")
	}
	s.offers[uid] = fds
	if s.trust {
		s.keep(uid).trusted = true
	}
	return nil
}

func (s *Server) offersDone(p *proxy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.offered = true
	for uid := range s.pods {
		p.news[uid] = false
	}
	p.wakeWriter()
}

// takeOver makes a proxy that has everything the active one. The one before
// drains; one that was draining until then has had its time, so that rolls in
// a row do not pile up processes.
func (s *Server) takeOver(p *proxy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.role != starting {
		return
	}
	p.role = active
	if p.saved >= 0 {
		s.replaceState(p.saved)
		p.saved = -1
	}
	var successor bool
	for old := range s.proxies {
		if old != p && old.role == active {
			successor = true
		}
	}
	for old := range s.proxies {
		switch {
		case old == p || old.role == starting:
		case old.role == active:
			old.role, old.drain = draining, true
			old.wakeWriter()
		case successor:
			s.cfg.Log.Warn("another proxy drains; the one before is told to end", zap.Int("pid", old.pid))
			old.role, old.drain = ended, true
			old.wakeWriter()
		}
	}
	s.cfg.Log.Info("proxy is ready", zap.Int("pid", p.pid))
}

func (s *Server) sendSockets(p *proxy, w *protocol.Want) error {
	answer := &protocol.Sockets{Uid: w.GetUid(), Family: w.GetFamily(), Count: w.GetCount()}
	var ns *netns.NS
	s.mu.Lock()
	if e, ok := s.pods[w.GetUid()]; ok {
		ns = e.ns
	}
	s.mu.Unlock()
	var fds []int
	err := errors.New("unknown pod")
	if ns != nil {
		err = ns.Do(func() error {
			for range w.GetCount() {
				fd, err := protocol.NewDialing(w.GetFamily())
				if err != nil {
					return err
				}
				fds = append(fds, fd)
			}
			return nil
		})
	}
	defer protocol.CloseAll(fds)
	s.count(len(fds), err != nil)
	if err != nil {
		answer.Error = err.Error()
	}
	return p.sendMessage(&protocol.FromAgent{Message: &protocol.FromAgent_Sockets{Sockets: answer}}, fds...)
}

// keepState keeps the newest state of the proxy that serves. One that is
// starting may not replace it before it takes over; what one that drains knows
// is better than nothing.
func (s *Server) keepState(p *proxy, fd int) error {
	if err := protocol.CheckSealed(fd); err != nil {
		protocol.CloseAll([]int{fd})
		return fmt.Errorf("state of process %d: %w", p.pid, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch p.role {
	case active:
		s.replaceState(fd)
	case starting:
		protocol.CloseAll([]int{p.saved})
		p.saved = fd
	default:
		if s.state < 0 {
			s.replaceState(fd)
		} else {
			protocol.CloseAll([]int{fd})
		}
	}
	return nil
}

func (s *Server) replaceState(fd int) {
	protocol.CloseAll([]int{s.state})
	s.state = fd
}
