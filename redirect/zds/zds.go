// Package zds gets the pods of a node from Istio's CNI agent, in the place of
// ztunnel: that agent installs the rules, and sends the network namespace of
// each pod; here listeners are made in it, and passed on to the proxy as ever.
//
// The protocol is Istio's (pkg/zdsapi there). What does not belong here: rules,
// and which pods are in the mesh.
package zds

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/netns"
)

// Sockets keeps the pods' listeners and hands them to the proxy.
type Sockets interface {
	// Add gives the pod listeners, unless it has them, and tells the proxy.
	Add(handoff.Pod, *netns.NS) error
	// Keep leaves to the proxy what it has of a pod.
	Keep(uid string)
	// KeepOffered leaves to the proxy all that it has, until Synced; ended
	// says by its namespace whether a pod has that nobody has named by then.
	KeepOffered(ended func(*netns.NS) bool)
	// Missing reports whether nobody has anything of a pod that is kept.
	Missing(uid string) bool
	// Remove takes the listeners away; gone says that the pod itself has ended.
	Remove(uid string, gone bool)
	// Synced says that every pod there is has been added or has failed to.
	Synced()
}

// Config says where the pods come from and go to.
type Config struct {
	// Socket is where Istio's CNI agent listens.
	Socket      string
	TrustDomain string // of all identities
	DNS         bool   // the agent's rules redirect DNS queries, too
	Sockets     Sockets
	Log         *zap.Logger
}

// Client plays ztunnel towards Istio's CNI agent. Pods stay as they are while
// that is away, also those that only the proxy knows from before this process.
type Client struct {
	cfg    Config
	failed chan struct{} // holds one token after a pod has failed

	mu     sync.Mutex
	pods   map[string]*pod
	synced bool
}

// pod is one that the agent has added or kept.
type pod struct {
	handoff.Pod
	ns  *netns.NS // nil of a pod that is kept without being known
	err error     // why it is not served; nil if it is
}

// New makes a client; nothing happens before Run.
func New(cfg Config) *Client {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Client{cfg: cfg, failed: make(chan struct{}, 1), pods: map[string]*pod{}}
}

const (
	firstPause = 100 * time.Millisecond // between two connections
	lastPause  = 5 * time.Second
	// retryPause is between two attempts to serve the pods that have failed:
	// most wait for another proxy to let go of the ports.
	retryPause = 500 * time.Millisecond
)

// Run follows the agent until the context ends.
func (c *Client) Run(ctx context.Context) error {
	defer c.closeAll()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.retry(ctx) })
	g.Go(func() error { return c.follow(ctx) })
	return g.Wait()
}

func (c *Client) follow(ctx context.Context) error {
	var told string
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		synced, err := c.session(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if synced {
			pause = firstPause
		} else if !c.Synced() {
			c.cfg.Sockets.KeepOffered(func(ns *netns.NS) bool { return holdsNone(ns, nil) })
		}
		if synced || err.Error() != told {
			told = err.Error()
			c.cfg.Log.Warn("no connection to Istio's CNI agent; the pods that are known are served on", zap.Error(err))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// retry tries again to serve pods that have failed.
func (c *Client) retry(ctx context.Context) error {
	for {
		select {
		case <-c.failed:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return ctx.Err()
		}
		c.mu.Lock()
		for _, p := range c.pods {
			if p.err != nil && p.ns != nil {
				_ = c.serve(p) // it has told why
			}
		}
		c.mu.Unlock()
	}
}

// serve makes sure that the pod has listeners and that the proxy knows it. The
// caller holds mu.
func (c *Client) serve(p *pod) (err error) {
	if len(p.Addresses) == 0 {
		p.Addresses, err = addressesOf(p.ns)
	}
	if err == nil {
		err = c.cfg.Sockets.Add(p.Pod, p.ns)
	}
	log := c.cfg.Log.With(zap.String("pod", p.Namespace+"/"+p.Name), zap.String("uid", p.UID))
	switch {
	case err == nil && p.err != nil:
		log.Info("the pod is served now")
	case err != nil && (p.err == nil || p.err.Error() != err.Error()):
		log.Error("the pod is not served; it is tried again", zap.Error(err))
	}
	if p.err = err; err != nil {
		select {
		case c.failed <- struct{}{}:
		default:
		}
		return fmt.Errorf("pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

func (c *Client) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pods {
		p.close()
	}
	clear(c.pods)
}

func (p *pod) close() {
	if p.ns != nil {
		p.ns.Close()
	}
}

// Synced reports whether the agent has once named every pod there is.
func (c *Client) Synced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.synced
}

// Stats are what became of the pods.
type Stats struct{ Served, Failing int }

// Stats is for metrics. Pods that are merely kept count as served by the proxy
// if it has them.
func (c *Client) Stats() (s Stats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for uid, p := range c.pods {
		if p.err == nil && (p.ns != nil || !c.cfg.Sockets.Missing(uid)) {
			s.Served++
		} else {
			s.Failing++
		}
	}
	return s
}
