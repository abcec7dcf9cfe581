// Package caclient gets workloads' certificates from a certificate authority
// that speaks Istio's certificate service (istio.v1.auth), and renews them.
//
// Keys are made here and never leave the process; the authority sees requests
// only. What does not belong here: who holds which identity (identity.Store)
// and the authority itself (identity/ca).
package caclient

import (
	"context"
	"math/rand/v2"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/xds/api/ca"
	"github.com/tacit-mesh/tacit/xds/model"
)

const (
	requestTimeout = 10 * time.Second
	firstBackoff   = 250 * time.Millisecond
	// A workload without a certificate cannot talk at all, so it asks again
	// sooner than one whose certificate merely grows old.
	maxBackoffUrgent = 15 * time.Second
	maxBackoff       = 150 * time.Second
	// While there is a certificate, a wait takes up to this part of the life
	// that it has left, and of little left not less than a second: whenever
	// the authority is back, there is a newer one before that one ends. Once
	// it has ended, waits grow in the same way with the time since then.
	backoffShare = 8
	minBackoff   = time.Second
	// soonOver is when the connection to the authority is not waited for
	// either, which backs off by itself; all together do not try to connect
	// more often than each of them may ask.
	soonOver = time.Minute
	// wallStep bounds how long a machine that was suspended, or whose clock
	// was set, goes on by the old time: timers do not run in suspend.
	wallStep           = 15 * time.Second
	defaultConcurrency = 8
	// Renewals come sooner than at half of the life by up to this part of it:
	// what was issued together is not renewed together. As a node starts, or an
	// outage ends, all of its certificates are issued within moments.
	spread         = 0.3
	spreadTogether = 0.6
)

// Config says which authority to ask and how.
type Config struct {
	Address    string // HOST:PORT
	ServerName string // DNS name in the authority's certificate
	RootsFile  string // PEM; read again at each connection to the authority
	TokenFile  string // bearer token; read again at each request; empty sends none
	ClusterID  string // sent as "clusterid", which istiod asks for; may be empty

	Lifetime    time.Duration // asked for; 0 is 24 h. The authority decides.
	Concurrency int           // requests under way at once; 0 is 8
	Clock       Clock         // nil is the system's
}

// Clock is the passing of time, replaced in tests.
type Clock interface {
	// Now is wall time: it moves when the clock is set and in suspend.
	Now() time.Time
	// After is time.After.
	After(time.Duration) <-chan time.Time
}

type systemClock struct{}

// Round strips the monotonic reading, which stands still in suspend.
func (systemClock) Now() time.Time                         { return time.Now().Round(0) }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Client is an identity.Source. All subscriptions share one connection.
type Client struct {
	config Config
	conn   *grpc.ClientConn
	ca     ca.IstioCertificateServiceClient
	gate   *gate
	plan   plan
	clock  Clock
	// connect is how often the connection is not waited for.
	connect rate.Sometimes
}

// New prepares a client. It connects when there is something to ask.
func New(config Config) (*Client, error) {
	if config.Lifetime == 0 {
		config.Lifetime = 24 * time.Hour
	}
	if config.Concurrency == 0 {
		config.Concurrency = defaultConcurrency
	}
	if config.Clock == nil {
		config.Clock = systemClock{}
	}
	conn, err := Dial(config)
	if err != nil {
		return nil, err
	}
	return &Client{
		config: config,
		conn:   conn,
		ca:     ca.NewIstioCertificateServiceClient(conn),
		gate:   newGate(config.Concurrency),
		clock:  config.Clock,

		connect: rate.Sometimes{Interval: minBackoff},
	}, nil
}

// Close ends the connection; requests under way fail.
func (c *Client) Close() error { return c.conn.Close() }

// Subscribe implements identity.Source: it renews at half of what is left of
// a certificate's life when it is received, by the wall clock, and after a
// failure asks again with exponential backoff.
func (c *Client) Subscribe(ctx context.Context, s identity.Subject, update func(*identity.Material), failed func(error)) error {
	var current *identity.Material
	backoff, early := firstBackoff, spreadTogether
	for {
		left := c.left(current)
		m, err := c.request(ctx, s.Identity, left)
		switch {
		case err == nil:
			current, backoff = m, firstBackoff
			update(m)
			c.waitForRenewal(ctx, m, early)
			early = spread
		case ctx.Err() == nil:
			failed(err)
			early = spreadTogether
			backoff = min(backoff, limit(c.left(current)))
			c.waitAfterFailure(ctx, backoff)
			backoff *= 2
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// none is what is left without a certificate: as of one that has ended long ago.
const none = -backoffShare * maxBackoffUrgent

// left is how long a certificate is still valid. It is negative once it has
// ended.
func (c *Client) left(m *identity.Material) time.Duration {
	now := c.clock.Now()
	if m == nil {
		return none
	}
	left := m.NotAfter().Sub(now)
	if left > 0 && !m.ValidAt(now) { // the clock was set back
		return none
	}
	return left
}

// limit is the longest wait after a failure, by how long the certificate that
// there is will do, or has not done.
func limit(left time.Duration) time.Duration {
	if left <= 0 {
		return min(max(-left/backoffShare, minBackoff), maxBackoffUrgent)
	}
	return min(max(left/backoffShare, minBackoff), maxBackoff)
}

// request takes its turn, those without a certificate before others, and asks
// once.
func (c *Client) request(ctx context.Context, id model.Identity, left time.Duration) (*identity.Material, error) {
	if err := c.gate.enter(ctx, left <= 0); err != nil {
		return nil, err
	}
	defer c.gate.leave()
	if left < soonOver {
		c.connect.Do(c.conn.ResetConnectBackoff)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return c.ask(ctx, id)
}

// waitForRenewal returns when m should be replaced: at half of the life it has
// left, or sooner by up to a part of that, when few others are, or as soon as the
// clock says that it is not valid.
func (c *Client) waitForRenewal(ctx context.Context, m *identity.Material, early float64) {
	received := c.clock.Now()
	half := m.NotAfter().Sub(received) / 2
	renewal := c.plan.enter(received.Add(half), time.Duration(float64(half)*early))
	defer c.plan.leave(renewal)
	for now := received; now.Before(renewal) && m.ValidAt(now); now = c.clock.Now() {
		select {
		case <-c.clock.After(min(wallStep, renewal.Sub(now))):
		case <-ctx.Done():
			return
		}
	}
}

// waitAfterFailure waits for d, or less by up to a fifth. It is over early if
// the wall clock says so; a clock that was set back does not prolong it.
func (c *Client) waitAfterFailure(ctx context.Context, d time.Duration) {
	d -= time.Duration(rand.Float64() * float64(d) / 5)
	end := c.clock.Now().Add(d)
	for d > 0 && c.clock.Now().Before(end) {
		step := min(wallStep, d)
		d -= step
		select {
		case <-c.clock.After(step):
		case <-ctx.Done():
			return
		}
	}
}
