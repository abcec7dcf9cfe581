package sockets

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

// AgentConfig says where the agent is and how it is known.
type AgentConfig struct {
	// Socket is the agent's, in a directory that only this process's user
	// may enter.
	Socket string
	// AgentUID is the user that the agent must be running as: 0, but in tests.
	AgentUID int
	// Spares bounds the dialing sockets held ready for all pods together;
	// 0 is a tenth of the limit of open files.
	Spares int
	Log    *zap.Logger
}

// Agent is the provider of a proxy without privileges: the node's agent makes
// the sockets and passes them over a Unix socket.
//
// Both sides keep the listeners. When the agent is away the pods stay and are
// served, and a restarted agent gets the listeners from here.
type Agent struct {
	cfg      AgentConfig
	patience time.Duration // lastPatience, but in tests
	feed     *feed
	reached  chan struct{} // closed when an agent has said what it kept
	draining chan struct{} // closed when a newer proxy has taken over
	wake     chan struct{} // holds one token while the writer has work

	mu       sync.Mutex
	pods     map[string]*pod
	session  uint64        // counts connections to an agent; 0 is none yet
	ready    uint64        // the session whose first list the handler has
	left     time.Time     // since when there is no agent; zero if there is one
	absence  time.Duration // altogether, before that
	alone    time.Time     // when the last connection to an agent ended
	drained  bool
	leaving  time.Time     // since when this process accepts nothing more; zero: it does
	saved    *state        // the newest, nil if none
	unsent   bool          // saved has not gone to this session's agent
	sent     chan struct{} // to be closed when it has; nil if nobody waits
	restored []byte
	restore  error
	spares   budget
}

// NewAgent makes a provider; nothing happens before Run.
func NewAgent(cfg AgentConfig) *Agent {
	if cfg.Spares == 0 {
		cfg.Spares = descriptorLimit() / 10
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Agent{
		cfg:      cfg,
		patience: lastPatience,
		feed:     newFeed(),
		reached:  make(chan struct{}),
		draining: make(chan struct{}),
		wake:     make(chan struct{}, 1),
		pods:     map[string]*pod{},
		left:     time.Now(),
		alone:    time.Now(),
		spares:   budget{limit: cfg.Spares},
	}
}

const (
	firstReconnect = 10 * time.Millisecond
	lastReconnect  = 200 * time.Millisecond
	trimInterval   = 10 * time.Second
	// lastPatience is how long a process that accepts nothing more keeps
	// listeners for an agent to come: connections that the kernel queues for
	// nobody are worse off than those that it refuses.
	lastPatience = 10 * time.Second
)

// errSuperseded ends a proxy that drains while the next one begins to.
var errSuperseded = errors.New("a second newer proxy has taken over while this one drained")

// Run serves the handler from the agent until the context ends, reconnecting
// by itself, or until another proxy drains, which ends this one's time. Then
// it removes every pod and closes its listeners.
func (a *Agent) Run(ctx context.Context, h Handler) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.feed.run(ctx, h) })
	g.Go(func() error { return a.reconnect(ctx) })
	g.Go(func() error { return a.trim(ctx) })
	err := g.Wait()
	a.feed.removeAll(h)
	a.closeAll()
	return err
}

// Absence implements [Provider]. An agent is there once it has said which pods
// there are.
func (a *Agent) Absence() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left.IsZero() {
		return a.absence
	}
	return a.absence + time.Since(a.left)
}

func (a *Agent) reconnect(ctx context.Context) error {
	said := ""
	for pause := firstReconnect; ; pause = min(2*pause, lastReconnect) {
		before := a.sessions()
		err := a.serve(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errSuperseded) {
			a.cfg.Log.Warn("ending; live connections are reset", zap.Error(err))
			return err
		}
		if a.sessions() != before { // there was one, for a while
			pause, said = firstReconnect, ""
		}
		a.giveUp()
		if text := err.Error(); text != said {
			said = text
			a.cfg.Log.Warn("no connection to tacit-agent; pods that are known are served on", zap.Error(err))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *Agent) sessions() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.session
}

// trim takes back what pools no longer need.
func (a *Agent) trim(ctx context.Context) error {
	t := time.NewTicker(trimInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			a.mu.Lock()
			for _, p := range a.pods {
				for _, pool := range p.pools {
					pool.trim(&a.spares)
				}
			}
			a.mu.Unlock()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *Agent) closeAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid, p := range a.pods {
		p.close(&a.spares, errors.New("the proxy is stopping"))
		delete(a.pods, uid)
	}
	if a.saved != nil {
		a.saved.close()
		a.saved = nil
	}
}

// Draining is closed when a newer proxy has taken over. From then on the
// listeners accept nothing, and no new pod is added; Dial goes on.
func (a *Agent) Draining() <-chan struct{} { return a.draining }

// Leave says that this process accepts nothing more, whether or not there is a
// newer one: an agent that restarts gets the listeners from it, but must not
// take it for the one that serves. Where there is no agent for 10 s, the
// listeners are closed, so that somebody else can have the ports.
func (a *Agent) Leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leaving.IsZero() {
		a.leaving = time.Now()
	}
}

// giveUp closes the listeners of a process that has been leaving, without a
// connection to an agent, for too long: one that is connected but has not named
// all pods yet has taken the listeners. It is called between two sessions alone.
func (a *Agent) giveUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.drained || a.leaving.IsZero() || min(time.Since(a.leaving), time.Since(a.alone)) < a.patience {
		return
	}
	a.cfg.Log.Warn("no tacit-agent comes to take the listeners; they are closed")
	a.closeListeners()
}

// closeListeners is for good: pods that come later have none here. The caller
// holds mu.
func (a *Agent) closeListeners() {
	a.drained = true
	for _, p := range a.pods {
		p.listeners.Close()
		protocol.CloseAll(p.fds)
		p.fds = nil
	}
}

// Save gives the agent a state, in pieces, to keep for the next proxy, in the
// place of the one before. The agent cannot change it, does not read it, and
// writes it nowhere. The channel is closed once it has been sent.
func (a *Agent) Save(content ...[]byte) (sent <-chan struct{}, err error) {
	s, err := newState(content)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.saved != nil {
		a.saved.close()
	}
	a.saved, a.unsent, a.sent = s, true, make(chan struct{})
	a.wakeWriter()
	return a.sent, nil
}

// Restore is what an earlier proxy saved; nil if nothing. While Run is on, it
// waits for the agent, which says so before its first pod.
func (a *Agent) Restore(ctx context.Context) ([]byte, error) {
	select {
	case <-a.reached:
		return a.restored, a.restore
	case <-ctx.Done():
		return nil, fmt.Errorf("restore state: no answer from tacit-agent at %s: %w", a.cfg.Socket, ctx.Err())
	}
}

// ErrNoSocket is the reason of a dial that ended before the agent had sent a
// socket.
var ErrNoSocket = errors.New("tacit-agent has sent no socket in time; is it running?")

// Dial implements [Provider].
func (a *Agent) Dial(ctx context.Context, podUID string, src netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	src, dst, err := unmapped(src, dst)
	if err != nil {
		return nil, err
	}
	fd, err := a.take(ctx, podUID, familyOf(dst.Addr()))
	if err != nil {
		return nil, fmt.Errorf("dial %v: %w", dst, err)
	}
	return connect(ctx, fd, src, dst, a.byLoopback(podUID, src, dst.Addr()))
}

// byLoopback reports whether a connection comes from elsewhere to the pod, and
// there is a way for it through the loopback device.
func (a *Agent) byLoopback(uid string, src, dst netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := a.pods[uid]
	return ok && !p.NoLoopbackRoute && src.IsValid() && slices.Contains(p.Addresses, dst) && !slices.Contains(p.Addresses, src)
}

// take returns a socket that is now the caller's.
func (a *Agent) take(ctx context.Context, uid string, family protocol.Family) (int, error) {
	a.mu.Lock()
	p, ok := a.pods[uid]
	if !ok {
		a.mu.Unlock()
		return -1, fmt.Errorf("no pod with UID %q", uid)
	}
	pool := p.pool(family)
	fd, w := pool.take(&a.spares)
	a.wakeWriter()
	a.mu.Unlock()
	if w == nil {
		return fd, nil
	}
	select {
	case got := <-w:
		return got.fd, got.err
	case <-ctx.Done():
		a.mu.Lock()
		pool.leave(w)
		a.mu.Unlock()
		select {
		case got := <-w: // it came at the last moment
			return got.fd, got.err
		default:
			return -1, errors.Join(ErrNoSocket, context.Cause(ctx))
		}
	}
}

// wakeWriter says that there may be something to send.
func (a *Agent) wakeWriter() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}
