package telemetry

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/tacit-mesh/tacit/xds/model"
)

const (
	// A series whose source or destination has left the mesh goes after this.
	goneLife = 10 * time.Minute
	// In a table that is more than half full, so does one that has had no
	// connection for this long.
	idleLife = time.Hour
)

// labels are Istio's standard ones, as a key: one look-up per connection.
type labels struct {
	reporter            Direction
	mutualTLS           bool
	flags               string
	source, destination side
	serviceHost         string
	serviceName         string
	serviceNamespace    string
}

// side has no pod's name: series are per workload, or there would be too many.
type side struct {
	workload, namespace, canonical, revision, cluster string
	principal                                         model.Identity
}

// The values of response_flags are ztunnel's.
const (
	flagsNone    = "-"
	flagsDenied  = "DENY"
	flagsConnect = "CONNECT"
)

func labelsOf(r *Record, flags string) labels {
	l := labels{
		reporter:    r.Direction,
		mutualTLS:   r.Security == MTLS || r.Security == Local,
		flags:       flags,
		source:      sideOf(&r.Source),
		destination: sideOf(&r.Destination),
	}
	if r.Service != nil {
		l.serviceHost, l.serviceName, l.serviceNamespace = r.Service.Hostname, r.Service.Name, r.Service.Namespace
	}
	// As in ztunnel, a destination has the identity that it should have,
	// while a source has one only if it proved it.
	if w := r.Destination.Workload; w != nil && l.destination.principal.IsZero() {
		l.destination.principal = w.Identity()
	}
	return l
}

func sideOf(e *End) side {
	s := side{namespace: e.Namespace, principal: e.Identity}
	if s.namespace == "" {
		s.namespace = e.Identity.Namespace
	}
	if w := e.Workload; w != nil {
		s.workload, s.namespace, s.cluster = w.WorkloadName, w.Namespace, w.ClusterID
		s.canonical, s.revision = w.CanonicalName, w.CanonicalRevision
	}
	return s
}

// series are the four counters of one set of labels.
type series struct {
	key      labels
	pairs    []*dto.LabelPair // shared by the four at each scrape
	opened   atomic.Int64
	closed   atomic.Int64
	sent     atomic.Int64 // as Record has it, not as Istio's names do
	received atomic.Int64

	live atomic.Int64 // holders; such a series stays
	used atomic.Int64 // Unix nanoseconds
	gone time.Time    // of an end that left the mesh; guarded by table.mu
}

// table holds the series, up to a limit. Beyond it one series per reporter
// takes what there is.
type table struct {
	limit int

	mu       sync.RWMutex
	series   map[labels]*series
	overflow [directions]*series
}

func newTable(limit int) *table {
	t := &table{limit: limit, series: map[labels]*series{}}
	for d := range t.overflow {
		other := side{workload: "other"}
		t.overflow[d] = newSeries(labels{reporter: Direction(d), flags: flagsNone, source: other, destination: other})
	}
	return t
}

// acquire finds or makes the series and keeps it until release.
func (t *table) acquire(key labels, now time.Time) *series {
	t.mu.RLock()
	s := t.series[key]
	if s != nil {
		s.live.Add(1) // within the lock: sweep must see it
	}
	t.mu.RUnlock()
	if s == nil {
		s = t.add(key)
	}
	s.used.Store(now.UnixNano())
	return s
}

func (t *table) add(key labels) *series {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.series[key]
	switch {
	case s != nil: // somebody was faster
	case len(t.series) >= t.limit:
		s = t.overflow[key.reporter%directions]
	default:
		s = newSeries(key)
		t.series[key] = s
	}
	s.live.Add(1)
	return s
}

func (s *series) release() { s.live.Add(-1) }

// workloadKey is what sweep knows the mesh's workloads by.
type workloadKey struct{ namespace, name string }

// sweep drops the series that can grow no more. A nil mesh says nothing about
// who has left.
func (t *table) sweep(now time.Time, mesh map[workloadKey]struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	crowded := len(t.series) > t.limit/2
	for key, s := range t.series {
		switch {
		case s.live.Load() > 0 || mesh == nil || in(mesh, key.source) && in(mesh, key.destination):
			s.gone = time.Time{}
		case s.gone.IsZero():
			s.gone = now
		}
		idle := s.live.Load() == 0 && now.Sub(time.Unix(0, s.used.Load())) >= idleLife
		if !s.gone.IsZero() && now.Sub(s.gone) >= goneLife || crowded && idle {
			delete(t.series, key)
		}
	}
}

func in(mesh map[workloadKey]struct{}, s side) bool {
	if s.workload == "" {
		return true // an end outside the mesh cannot leave it
	}
	_, ok := mesh[workloadKey{s.namespace, s.workload}]
	return ok
}

func (t *table) all() []*series {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]*series, 0, len(t.series)+len(t.overflow))
	for _, s := range t.series {
		all = append(all, s)
	}
	for _, s := range t.overflow {
		if s.opened.Load() > 0 || s.closed.Load() > 0 {
			all = append(all, s)
		}
	}
	return all
}

// labelNames and values go together.
var labelNames = []string{
	"reporter", "request_protocol", "response_flags", "connection_security_policy",
	"source_workload", "source_workload_namespace", "source_canonical_service", "source_canonical_revision",
	"source_app", "source_version", "source_cluster", "source_principal",
	"destination_workload", "destination_workload_namespace", "destination_canonical_service", "destination_canonical_revision",
	"destination_app", "destination_version", "destination_cluster", "destination_principal",
	"destination_service", "destination_service_name", "destination_service_namespace",
}

func (l *labels) values() []string {
	reporter, security := "source", ""
	if l.reporter == Inbound {
		reporter = "destination"
	}
	if l.mutualTLS {
		security = "mutual_tls"
	}
	values := []string{reporter, "tcp", l.flags, security}
	for _, s := range []*side{&l.source, &l.destination} {
		values = append(values, s.workload, s.namespace, s.canonical, s.revision,
			s.canonical, s.revision, s.cluster, s.principal.String())
	}
	return append(values, l.serviceHost, l.serviceName, l.serviceNamespace)
}

func newSeries(key labels) *series {
	s := &series{key: key}
	for i, value := range key.values() {
		if value == "" {
			value = "unknown"
		}
		s.pairs = append(s.pairs, &dto.LabelPair{Name: &labelNames[i], Value: &value})
	}
	slices.SortFunc(s.pairs, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
	return s
}

// trafficCollector shows the table to Prometheus. Counters of its own, four
// for each set of labels, would take several times the memory.
type trafficCollector struct {
	table                          *table
	opened, closed, sent, received *prometheus.Desc
}

func newTrafficCollector(t *table) *trafficCollector {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, labelNames, nil) }
	return &trafficCollector{
		table:    t,
		opened:   desc("istio_tcp_connections_opened_total", "The total number of TCP connections opened."),
		closed:   desc("istio_tcp_connections_closed_total", "The total number of TCP connections closed."),
		sent:     desc("istio_tcp_sent_bytes_total", "Bytes sent to the client, in response."),
		received: desc("istio_tcp_received_bytes_total", "Bytes received from the client, in request."),
	}
}

// Describe implements prometheus.Collector.
func (c *trafficCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.opened, c.closed, c.sent, c.received} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *trafficCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.table.all() {
		ch <- counter{c.opened, s, s.opened.Load()}
		ch <- counter{c.closed, s, s.closed.Load()}
		ch <- counter{c.sent, s, s.received.Load()}
		ch <- counter{c.received, s, s.sent.Load()}
	}
}

type counter struct {
	desc   *prometheus.Desc
	series *series
	value  int64
}

func (c counter) Desc() *prometheus.Desc { return c.desc }

func (c counter) Write(m *dto.Metric) error {
	value := float64(c.value)
	m.Label, m.Counter = c.series.pairs, &dto.Counter{Value: &value}
	return nil
}
