package telemetry

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// The buckets are Istio's: milliseconds, and bytes.
var (
	durationBuckets = []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}
	sizeBuckets     = durationBuckets
)

// requestLabels are Istio's for requests, as a key.
type requestLabels struct {
	labels
	protocol string
	code     int
	grpc     int
}

// requestSeries are the four metrics of one set of labels.
type requestSeries struct {
	pairs []*dto.LabelPair

	mu                       sync.Mutex // guards what follows
	total                    uint64
	duration, sent, received histogram
	used                     time.Time
	gone                     time.Time // guarded by the table's mu
}

// histogram counts values in Istio's buckets.
type histogram struct {
	counts [20]uint64
	sum    float64
}

func (h *histogram) observe(v float64, buckets []float64) {
	i, _ := slices.BinarySearch(buckets, v) // the last one is for what is beyond all
	h.counts[i]++
	h.sum += v
}

// requestTable holds the series of requests, up to a limit. Beyond it one per
// reporter takes what there is.
type requestTable struct {
	limit int

	mu       sync.RWMutex
	series   map[requestLabels]*requestSeries
	overflow [directions]*requestSeries
}

func newRequestTable(limit int) *requestTable {
	t := &requestTable{limit: limit, series: map[requestLabels]*requestSeries{}}
	for d := range t.overflow {
		other := side{workload: "other"}
		t.overflow[d] = newRequestSeries(requestLabels{
			labels:   labels{reporter: Direction(d), flags: flagsNone, source: other, destination: other},
			protocol: "http", grpc: -1,
		})
	}
	return t
}

// count adds a request that has ended.
func (t *requestTable) count(q *Request, now time.Time) {
	flags := flagsNone
	if q.Denied {
		flags = flagsDenied
	}
	s := t.find(requestLabels{labelsOf(q.Connection, flags), q.Protocol, q.Status, q.GRPCStatus})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = now
	s.total++
	s.duration.observe(float64(now.Sub(q.Start).Microseconds())/1000, durationBuckets)
	s.sent.observe(float64(q.Sent), sizeBuckets)
	s.received.observe(float64(q.Received), sizeBuckets)
}

func (t *requestTable) find(key requestLabels) *requestSeries {
	t.mu.RLock()
	s := t.series[key]
	t.mu.RUnlock()
	if s != nil {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch s = t.series[key]; {
	case s != nil: // somebody was faster
	case len(t.series) >= t.limit:
		s = t.overflow[key.reporter%directions]
	default:
		s = newRequestSeries(key)
		t.series[key] = s
	}
	return s
}

// sweep drops the series of ends that have left the mesh and, of many, those
// that are not used any more.
func (t *requestTable) sweep(now time.Time, mesh map[workloadKey]struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	crowded := len(t.series) > t.limit/2
	for key, s := range t.series {
		switch {
		case mesh == nil || in(mesh, key.source) && in(mesh, key.destination):
			s.gone = time.Time{}
		case s.gone.IsZero():
			s.gone = now
		}
		s.mu.Lock()
		idle := now.Sub(s.used) >= idleLife
		s.mu.Unlock()
		if !s.gone.IsZero() && now.Sub(s.gone) >= goneLife || crowded && idle {
			delete(t.series, key)
		}
	}
}

func (t *requestTable) all() []*requestSeries {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]*requestSeries, 0, len(t.series)+len(t.overflow))
	for _, s := range t.series {
		all = append(all, s)
	}
	for _, s := range t.overflow {
		s.mu.Lock()
		used := s.total > 0
		s.mu.Unlock()
		if used {
			all = append(all, s)
		}
	}
	return all
}

// requestLabelNames and the values of newRequestSeries go together.
var requestLabelNames = append(slices.Clone(labelNames), "response_code", "grpc_response_status")

func newRequestSeries(key requestLabels) *requestSeries {
	values := key.values()
	values[1] = key.protocol
	grpc := ""
	if key.grpc >= 0 {
		grpc = code(key.grpc)
	}
	values = append(values, code(key.code), grpc)
	s := &requestSeries{}
	for i, value := range values {
		if value == "" && requestLabelNames[i] != "grpc_response_status" {
			value = "unknown"
		}
		s.pairs = append(s.pairs, &dto.LabelPair{Name: &requestLabelNames[i], Value: &value})
	}
	slices.SortFunc(s.pairs, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
	return s
}

// requestCollector shows the table to Prometheus.
type requestCollector struct {
	table                           *requestTable
	total, duration, sent, received *prometheus.Desc
}

func newRequestCollector(t *requestTable) *requestCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, requestLabelNames, nil)
	}
	return &requestCollector{
		table:    t,
		total:    desc("istio_requests_total", "Requests, by their ends and answers."),
		duration: desc("istio_request_duration_milliseconds", "From the head of a request to the end of its response."),
		sent:     desc("istio_request_bytes", "Size of requests' bodies."),
		received: desc("istio_response_bytes", "Size of responses' bodies."),
	}
}

// Describe implements prometheus.Collector.
func (c *requestCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.total, c.duration, c.sent, c.received} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *requestCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.table.all() {
		s.mu.Lock()
		total, duration, sent, received := s.total, s.duration, s.sent, s.received
		s.mu.Unlock()
		ch <- requestCount{c.total, s, float64(total)}
		ch <- requestSizes{c.duration, s, duration, durationBuckets}
		ch <- requestSizes{c.sent, s, sent, sizeBuckets}
		ch <- requestSizes{c.received, s, received, sizeBuckets}
	}
}

type requestCount struct {
	desc   *prometheus.Desc
	series *requestSeries
	value  float64
}

func (c requestCount) Desc() *prometheus.Desc { return c.desc }

func (c requestCount) Write(m *dto.Metric) error {
	m.Label, m.Counter = c.series.pairs, &dto.Counter{Value: &c.value}
	return nil
}

type requestSizes struct {
	desc    *prometheus.Desc
	series  *requestSeries
	values  histogram
	buckets []float64
}

func (h requestSizes) Desc() *prometheus.Desc { return h.desc }

func (h requestSizes) Write(m *dto.Metric) error {
	var total uint64
	out := &dto.Histogram{SampleSum: &h.values.sum}
	for i := range h.buckets {
		total += h.values.counts[i]
		below := total
		out.Bucket = append(out.Bucket, &dto.Bucket{UpperBound: &h.buckets[i], CumulativeCount: &below})
	}
	total += h.values.counts[len(h.buckets)]
	out.SampleCount = &total
	m.Label, m.Histogram = h.series.pairs, out
	return nil
}
