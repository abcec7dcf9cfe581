package telemetry

import (
	"context"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/time/rate"

	"github.com/tacit-mesh/tacit/internal/audit"
	"github.com/tacit-mesh/tacit/internal/otlp"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/model"
)

const (
	floodInterval    = 10 * time.Second
	sweepInterval    = time.Minute
	defaultMaxSeries = 5000
)

// Options say what a Recorder shows besides connections. The zero value
// shows connections alone.
type Options struct {
	// Log must not sample: floods are summed up here. nil logs nothing.
	Log       *zap.Logger
	Now       func() time.Time // nil is time.Now
	MaxSeries int              // sets of labels for istio_tcp_*; 0 is 5000

	// Workloads lists the mesh, once a minute: series of workloads that are
	// gone are dropped. nil keeps them.
	Workloads       func() []*model.Workload
	Generation      func() uint64
	PoolConnections func() int
	// Certificates are the identities held, each once.
	Certificates func() []Certificate
	// Ztunnel is for a proxy in the place of ztunnel; nil has no series of its
	// own names.
	Ztunnel func() Ztunnel
	// Flows are told of every connection and request; nil remembers none, and
	// costs nothing.
	Flows *flows.Log
	// Audit is told of denials, and of what a bypass lets through; nil: nobody.
	Audit *audit.Log
	// Spans takes those of the connections and requests that have one; nil makes
	// none. Node is where they are made.
	Spans *otlp.Exporter
	Node  string
}

// Recorder counts and logs connections. Its methods may be called from any
// goroutine and never wait for anything but the log's writer.
type Recorder struct {
	options  Options
	log      *zap.Logger
	registry *prometheus.Registry
	metrics  *metrics
	traffic  *table
	requests *requestTable
	flood    *flood
	audited  *flood
	access   *rate.Limiter
}

// New makes a recorder with a registry of its own.
func New(o Options) *Recorder {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxSeries == 0 {
		o.MaxSeries = defaultMaxSeries
	}
	r := &Recorder{
		options:  o,
		log:      o.Log,
		registry: prometheus.NewRegistry(),
		traffic:  newTable(o.MaxSeries),
		requests: newRequestTable(o.MaxSeries),
		flood:    newFlood(0),
		audited:  newFlood(auditAllowed),
		access:   newAccessLimiter(),
	}
	r.metrics = newMetrics(r.registry, o)
	r.registry.MustRegister(newTrafficCollector(r.traffic), newRequestCollector(r.requests))
	return r
}

// Handler serves the metrics.
func (r *Recorder) Handler() http.Handler {
	return promhttp.HandlerFor(r.registry, promhttp.HandlerOpts{Registry: r.registry, MaxRequestsInFlight: 4})
}

// Run drops old series and sums up floods until the context ends.
func (r *Recorder) Run(ctx context.Context) error {
	floods, sweeps := time.NewTicker(floodInterval), time.NewTicker(sweepInterval)
	defer floods.Stop()
	defer sweeps.Stop()
	defer r.summarize()
	defer r.auditRepeated()
	for {
		select {
		case <-floods.C:
			r.summarize()
			r.auditRepeated()
		case <-sweeps.C:
			r.sweep()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *Recorder) sweep() {
	var mesh map[workloadKey]struct{}
	if r.options.Workloads != nil {
		mesh = map[workloadKey]struct{}{}
		workloads := r.options.Workloads()
		r.metrics.dns.sweep(r.options.Now(), workloads)
		for _, w := range workloads {
			mesh[workloadKey{w.Namespace, w.WorkloadName}] = struct{}{}
		}
	}
	r.traffic.sweep(r.options.Now(), mesh)
	r.requests.sweep(r.options.Now(), mesh)
}

// Opened counts a connection that is about to carry bytes. Its ends, service
// and security are final from here on.
func (r *Recorder) Opened(c *Record) {
	c.series = r.traffic.acquire(labelsOf(c, flagsNone), r.options.Now())
	c.series.opened.Add(1)
	r.metrics.live[c.Direction].Add(1)
	r.metrics.connections[c.Direction][c.Security].Inc()
	r.flow(c, flows.Opened, r.options.Now())
}

// Progress counts the bytes of an opened connection so far, so that a long
// one shows before its end. It may be called while another goroutine calls
// Closed.
func (r *Recorder) Progress(c *Record, sent, received int64) {
	if c.series == nil {
		return
	}
	c.series.sent.Add(advance(&c.sent, sent))
	c.series.received.Add(advance(&c.received, received))
}

// advance returns by how much total is more than was counted before.
func advance(counted *atomic.Int64, total int64) int64 {
	for {
		before := counted.Load()
		if total <= before {
			return 0
		}
		if counted.CompareAndSwap(before, total) {
			return total - before
		}
	}
}

// Denied is Closed with the outcome Denied: of a connection that was never
// opened, or of a live one that is no longer allowed.
func (r *Recorder) Denied(c *Record) {
	c.Outcome = Denied
	r.Closed(c)
}

// Closed counts and logs the end of a connection, opened or not; a second
// call for the same one does nothing.
func (r *Recorder) Closed(c *Record) {
	if c.ended {
		return
	}
	c.ended = true
	now := r.options.Now()
	r.countEnd(c, now)
	for phase, d := range c.Phases {
		if d > 0 {
			r.metrics.phases[c.Direction][phase].Observe(d.Seconds())
		}
	}
	if c.Outcome == Denied {
		r.metrics.denials.inc(c.Direction.String(), c.Reason)
	}
	if c.Direction == Inbound { // where policies decide
		r.countPolicies(c.Outcome == Denied, c.Policy, c.Closest, c.DryRun, "")
		r.auditConnection(c)
	}
	r.spanOfConnection(c, now)
	r.flow(c, flows.Ended, now)
	level, message := zapcore.WarnLevel, "connection denied"
	switch c.Outcome {
	case OK, Reset:
		level, message = zapcore.InfoLevel, "connection closed"
	case Failed:
		message = "connection failed"
	}
	k := kind{message, c.Direction, c.Source.Addr.Addr(), c.Destination.Addr, c.Reason, c.Policy}
	if entry := r.admit(level, k); entry != nil {
		entry.Write(zap.Inline(line{c, now}))
	}
}

// countEnd counts what Opened has not. As in ztunnel, bytes belong to the
// series of the opening and the end to that of its flags.
func (r *Recorder) countEnd(c *Record, now time.Time) {
	flags := flagsNone
	switch c.Outcome {
	case Denied:
		flags = flagsDenied
	case Failed:
		flags = flagsConnect
	}
	opened := c.series
	if opened == nil || flags != flagsNone {
		ended := r.traffic.acquire(labelsOf(c, flags), now)
		defer ended.release()
		ended.closed.Add(1)
		if opened == nil {
			ended.opened.Add(1)
			r.metrics.connections[c.Direction][c.Security].Inc()
			return
		}
	} else {
		opened.closed.Add(1)
	}
	opened.sent.Add(advance(&c.sent, c.Sent))
	opened.received.Add(advance(&c.received, c.Received))
	opened.used.Store(now.UnixNano())
	opened.release()
	r.metrics.live[c.Direction].Add(-1)
}

// HandshakeFailed counts and logs a TLS handshake that led to no connection.
// reason is a stable label, such as identity.FailureReason gives.
func (r *Recorder) HandshakeFailed(d Direction, source, destination netip.AddrPort, reason string, err error) {
	r.metrics.handshakes.inc(d.String(), reason)
	r.auditHandshake(trouble{d, source, destination, reason, err})
	r.trouble("TLS handshake failed", trouble{d, source, destination, reason, err})
}

// PeerCut counts and logs that a peer's connection was cut for what it sent.
// cause is a stable label, such as rst_flood.
func (r *Recorder) PeerCut(d Direction, source, destination netip.AddrPort, cause string, err error) {
	r.metrics.cuts.inc(cause)
	r.trouble("peer cut off", trouble{d, source, destination, cause, err})
}

func (r *Recorder) trouble(message string, t trouble) {
	k := kind{message: message, direction: t.direction, source: t.source.Addr(), destination: t.destination, reason: t.reason}
	if entry := r.admit(zapcore.WarnLevel, k); entry != nil {
		entry.Write(zap.Inline(t))
	}
}

// trouble is what happened to a peer before there was a connection.
type trouble struct {
	direction           Direction
	source, destination netip.AddrPort
	reason              string
	err                 error
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (t trouble) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("direction", t.direction.String())
	enc.AddString("src.addr", t.source.String())
	enc.AddString("dst.addr", t.destination.String())
	addString(enc, "reason", t.reason)
	if t.err != nil {
		enc.AddString("error", errorText(t.err))
	}
	return nil
}
