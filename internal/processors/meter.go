package processors

import (
	"runtime/metrics"
	"syscall"
	"time"
)

// meter measures what was needed from one look to the next.
type meter struct {
	at      time.Time
	cpuTime time.Duration
	samples []metrics.Sample
	waits   []uint64 // what there was of each length
}

// need is what a round needed.
type need struct {
	used float64 // processors, on average
	late bool    // of the goroutines that were ready, a tenth waited for lateAfter
}

const (
	lateAfter = time.Millisecond
	lateLeast = 4 // fewer say nothing
)

func (m *meter) look(now time.Time) need {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // fails for other arguments alone
	cpuTime := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	n := need{used: float64(cpuTime-m.cpuTime) / float64(max(1, now.Sub(m.at))), late: m.late()}
	m.at, m.cpuTime = now, cpuTime
	return n
}

func (m *meter) late() bool {
	if m.samples == nil {
		m.samples = []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	}
	metrics.Read(m.samples)
	h := m.samples[0].Value.Float64Histogram()
	if m.waits == nil {
		m.waits = make([]uint64, len(h.Counts))
	}
	var all, late uint64
	for i, n := range h.Counts {
		all += n - m.waits[i]
		if h.Buckets[i] >= lateAfter.Seconds() {
			late += n - m.waits[i]
		}
	}
	copy(m.waits, h.Counts)
	return late >= max(lateLeast, all/10)
}
