// Package client keeps a proxy's view of the mesh up to date: a delta xDS
// client for workloads, services and policies: all of them or, of workloads and
// services, those that somebody asks for ([Client.Hold]).
//
// It acknowledges each response once it has been applied, whole, and together
// with those that the control plane says belong to the same change; resources
// that are wrong are rejected by name while the others of the same response
// apply. It holds what it was sent, so that after a reconnect, or after a
// restart with [Client.Restore], the control plane sends only what changed.
// What does not belong here: what resources mean (xds/wire) and what they
// lead to (the [Sink]).
package client

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Sink takes updates, one at a time and in order. The responses behind one are
// acknowledged once Apply has returned.
type Sink interface {
	Apply(model.Update)
}

// Config says where the control plane is, who asks, and who is told.
type Config struct {
	Server     string // HOST:PORT, always TLS
	ServerName string // name in the server's certificate; empty: HOST
	// RootsFile holds the PEM roots by which the server is judged, TokenFile
	// the bearer token (empty: none). Both are read for each connection.
	RootsFile string
	TokenFile string
	ClusterID string // sent as gRPC metadata "clusterid"; empty: not sent
	Node      Node
	Sink      Sink
	// OnDemand asks for workloads and services one by one. Known is what the
	// sink has made of the updates so far.
	OnDemand bool
	Known    func() *model.Snapshot
	// Saved, if set, gets the export at once after a change, but takes no
	// more than a tenth of the time, and one call at a time; it may block.
	// An empty export means that there is nothing worth keeping: what was
	// saved before is to be forgotten, as it no longer holds.
	Saved func([]byte)
	// MaxSaved bounds an export in bytes; 0: 64 MiB.
	MaxSaved int
	// Burst, if set, is told when a large message, or what was saved, is about to
	// keep a CPU busy, and once more when the outcome has been exported. Later
	// exports are not told of, however large: each small change has one.
	Burst func()
	Log   *zap.Logger // nil: none
}

const (
	defaultMaxSaved = 64 << 20
	// What changed since the last save is old news to the next process,
	// until the control plane tells it again: the shorter the better.
	saveEvery = 50 * time.Millisecond
)

// Client is the delta xDS client. Make one with New.
type Client struct {
	config    Config
	log       *zap.Logger
	saveEvery time.Duration
	dirty     chan struct{} // holds one value when there is something to save
	asking    chan struct{} // holds one value when there is something to ask for
	ready     chan struct{}

	applying sync.Mutex // held while an update is made and applied; before mu

	mu     sync.Mutex // guards all below
	kinds  []*kind    // in the order of subscription
	status Status
	// largeCame means that Config.Burst was told of what is not accepted yet,
	// or is restored, largeUnsaved that it is accepted and not exported yet.
	largeCame, largeUnsaved bool
	// On demand; names is nil otherwise.
	names     map[string]*name
	unasked   map[string]struct{} // names to be asked for
	givenUp   []string            // names to be given up, before that
	batches   uint64              // of names that have been asked for
	marks     []string            // of batches that have been answered, to be given up
	tellsNews bool                // the control plane says when a name stands for something else
}

// New makes a client. It does nothing before Run, or Restore and Run.
func New(config Config) *Client {
	if config.MaxSaved == 0 {
		config.MaxSaved = defaultMaxSaved
	}
	if config.Log == nil {
		config.Log = zap.NewNop()
	}
	c := &Client{
		config:    config,
		log:       config.Log,
		saveEvery: saveEvery,
		dirty:     make(chan struct{}, 1),
		asking:    make(chan struct{}, 1),
		ready:     make(chan struct{}),
		kinds:     newKinds(config.OnDemand),
		status:    Status{Since: time.Now()},
	}
	if config.OnDemand {
		c.names, c.unasked = map[string]*name{}, map[string]struct{}{}
	}
	return c
}

// Ready is closed once the first full lists of addresses and of policies have
// been applied; restored ones count as Restore says.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Run connects, again and again, until the context ends, and returns the
// context's error. A connection lost, whatever the reason, changes nothing in
// what is known.
func (c *Client) Run(ctx context.Context) error {
	var saving sync.WaitGroup
	ended := make(chan struct{})
	saving.Go(func() { c.save(ended) })
	defer saving.Wait()
	defer close(ended)
	silence := time.AfterFunc(trustAfter, c.trust)
	defer silence.Stop()
	var retry backoff
	for {
		began := time.Now()
		responses, err := c.session(ctx)
		if ctx.Err() != nil {
			c.disconnected(responses, ctx.Err())
			return ctx.Err()
		}
		c.disconnected(responses, err)
		c.trust()
		wait := retry.after(responses > 0 && time.Since(began) >= usefulSession)
		c.log.Warn("xDS connection ended", zap.String("server", c.config.Server), zap.Error(err), zap.Duration("retry_in", wait))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}
