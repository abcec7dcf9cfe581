package suite

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// What programs print is read, and a request that failed fails the whole.
func TestPrograms(t *testing.T) {
	const fortio = `{"ActualDuration": 2000000000, "RetCodes": {"200": 30},
		"DurationHistogram": {"Count": 30, "Max": 0.004, "Percentiles": [{"Percentile": 50, "Value": 0.001}, {"Percentile": 99, "Value": 0.003}]}}`
	const h2load = "finished in 500.00ms, 2000.00 req/s, 1.9MB/s\nrequests: 1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout\n"
	const redis = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n" +
		"\"GET\",\"30000.00\",\"0.4\",\"0.1\",\"0.5\",\"1.0\",\"2.5\",\"4.0\"\n"
	const pgbench = "number of transactions actually processed: 800/800\nlatency average = 1.9 ms\ntps = 1600.5 (without initial connection time)\n"
	for _, c := range []struct {
		program, out string
		requests     int
		perSecond    float64
		p99          time.Duration
	}{
		{"fortio", fortio, 30, 15, 3 * time.Millisecond},
		{"fortio", strings.Replace(fortio, `"200": 30`, `"200": 29, "503": 1`, 1), 0, 0, 0},
		{"fortio", "", 0, 0, 0},
		{"h2load", h2load, 1000, 2000, 0},
		{"h2load", strings.Replace(h2load, "1000 succeeded", "999 succeeded", 1), 0, 0, 0},
		{"redis-benchmark", redis, 14992, 30000, 2500 * time.Microsecond},
		{"redis-benchmark", strings.Replace(redis, "30000.00", "0.00", 1), 0, 0, 0},
		{"redis-benchmark", "Could not connect\n", 0, 0, 0},
		{"pgbench", pgbench, 800, 1600.5, 0},
		{"pgbench", strings.Replace(pgbench, "800/800", "799/800", 1), 0, 0, 0},
	} {
		p := Programs[slices.IndexFunc(Programs, func(p Program) bool { return p.Name == c.program })]
		r, err := p.Read(c.out, time.Second)
		if (err != nil) != (c.requests == 0) {
			t.Errorf("%s: %q: %v", c.program, c.out, err)
			continue
		}
		if err == nil && (r.Requests != c.requests || r.P99 != c.p99 || abs(float64(r.Requests)/r.Elapsed.Seconds()-c.perSecond) > 0.01*c.perSecond) {
			t.Errorf("%s: %+v", c.program, r)
		}
	}
}

func abs(x float64) float64 { return max(x, -x) }
