package telemetry

import (
	"bytes"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	mesh "github.com/tacit-mesh/tacit/xds/model"
)

// world is a recorder with its log, its clock and the mesh that it believes in.
type world struct {
	t *testing.T
	*Recorder
	log       *bytes.Buffer
	now       time.Time
	workloads []*mesh.Workload
	options   Options
}

func newWorld(t *testing.T, change func(*Options)) *world {
	w := &world{t: t, log: &bytes.Buffer{}, now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
	w.workloads = []*mesh.Workload{web, db}
	encoder := zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg", LevelKey: "level", EncodeLevel: zapcore.LowercaseLevelEncoder})
	w.options = Options{
		Log:       zap.New(zapcore.NewCore(encoder, zapcore.AddSync(w.log), zapcore.DebugLevel)),
		Now:       func() time.Time { return w.now },
		Workloads: func() []*mesh.Workload { return w.workloads },
	}
	if change != nil {
		change(&w.options)
	}
	w.Recorder = New(w.options)
	return w
}

// scrape reads the metrics over HTTP: name{labels} -> value.
func (w *world) scrape() map[string]float64 {
	w.t.Helper()
	server := httptest.NewServer(w.Handler())
	defer server.Close()
	answer, err := server.Client().Get(server.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(answer.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	found := map[string]float64{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%s", l.GetName(), l.GetValue()))
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			found[name+"{"+strings.Join(labels, ",")+"}"] = value
		}
	}
	return found
}

// want is a part of a series' labels and its value.
func (w *world) want(name string, value float64, labels ...string) {
	w.t.Helper()
	var sum float64
	n := 0
	for key, got := range w.scrape() {
		if !strings.HasPrefix(key, name+"{") {
			continue
		}
		matches := true
		for _, l := range labels {
			matches = matches && strings.Contains(strings.NewReplacer("{", ",", "}", ",").Replace(key), ","+l+",")
		}
		if matches {
			sum += got
			n++
		}
	}
	if n != 1 || sum != value {
		w.t.Errorf("%s%v: %d series with the sum %v, want one with %v", name, labels, n, sum, value)
	}
}

// count is how many series a name has.
func (w *world) count(name string) int {
	n := 0
	for key := range w.scrape() {
		if strings.HasPrefix(key, name+"{") {
			n++
		}
	}
	return n
}

func (w *world) lines() []string {
	text := strings.TrimSuffix(w.log.String(), "\n")
	w.log.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

var (
	web = &mesh.Workload{UID: "c//Pod/shop/web-1", Name: "web-1", Namespace: "shop", ServiceAccount: "web", TrustDomain: "cluster.local",
		ClusterID: "c", CanonicalName: "web", CanonicalRevision: "v2", WorkloadName: "web-deploy"}
	db = &mesh.Workload{UID: "c//Pod/data/db-0", Name: "db-0", Namespace: "data", ServiceAccount: "db", TrustDomain: "cluster.local",
		ClusterID: "c", CanonicalName: "postgres", CanonicalRevision: "latest", WorkloadName: "db"}
	dbService = &mesh.Service{Name: "db", Namespace: "data", Hostname: "db.data.svc.cluster.local"}
)

const id = "0123456789abcdef0123456789abcdef"

func (w *world) record() *Record {
	return &Record{
		ID: id, Direction: Inbound, Security: MTLS, Start: w.now,
		Source:      End{Addr: netip.MustParseAddrPort("10.0.0.1:4000"), Workload: web, Identity: web.Identity()},
		Destination: End{Addr: netip.MustParseAddrPort("10.0.0.2:5432"), Workload: db, Identity: db.Identity()},
		Service:     dbService,
	}
}
