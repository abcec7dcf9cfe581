package hbone

import (
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

func BenchmarkRoundTrip(b *testing.B) {
	for _, streams := range []int{1, 16} {
		b.Run(map[int]string{1: "1", 16: "16"}[streams], func(b *testing.B) {
			w := newWorld(b, forward(application(b, echo)), worldOptions{idle: relay.Idle})
			apps := connected(b, w, streams)
			work := make(chan struct{}, 1024)
			var running sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for _, app := range apps {
				running.Go(func() {
					p := make([]byte, 1024)
					for range work {
						exchangeOnce(b, app, p)
					}
				})
			}
			spent := cpu()
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			running.Wait()
			b.StopTimer()
			b.ReportMetric(float64(cpu()-spent)/float64(b.N)/1000, "cpu-us/op")
			closeAll(apps)
		})
	}
}

func BenchmarkBulk(b *testing.B) {
	sink := application(b, func(c *net.TCPConn) { io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}) })
	for _, streams := range []int{1, 16} {
		b.Run(map[int]string{1: "1", 16: "16"}[streams], func(b *testing.B) {
			w := newWorld(b, forward(sink), worldOptions{idle: relay.Idle})
			var apps []*net.TCPConn
			var results []func()
			for range streams {
				app, done := w.connect("10.0.0.1:80")
				apps = append(apps, app)
				results = append(results, func() { within(b, done) })
			}
			p := make([]byte, 256<<10)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			b.ResetTimer()
			spent := cpu()
			var running sync.WaitGroup
			for _, app := range apps {
				running.Go(func() {
					for range b.N/streams + 1 {
						if _, err := app.Write(p); err != nil {
							b.Error(err)
							return
						}
					}
					app.CloseWrite()
				})
			}
			running.Wait()
			for _, wait := range results {
				wait()
			}
			b.ReportMetric(float64(cpu()-spent)/float64(b.N)/float64(len(p)), "cpu-s/GB")
		})
	}
}

// cpu is the processor time of this process, in nanoseconds: relays, both ends
// of TLS, and the applications.
func cpu() int64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkIdle reports what a stream holds at both ends while nothing moves.
func BenchmarkIdle(b *testing.B) {
	w := newWorld(b, forward(application(b, echoBytes)))
	const streams = 500
	before := inUse()
	apps := connected(b, w, streams)
	eventually(b, func() bool { return w.parking.Parked() == 2*streams })
	for b.Loop() {
		runtime.GC()
	}
	b.ReportMetric(float64(inUse()-before)/streams, "B/stream")
	closeAll(apps)
}

// echoBytes is an application that holds no buffer.
func echoBytes(c *net.TCPConn) {
	var p [1]byte
	for _, err := c.Read(p[:]); err == nil; _, err = c.Read(p[:]) {
		c.Write(p[:])
	}
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func BenchmarkConnect(b *testing.B) {
	w := newWorld(b, forward(application(b, echo)), worldOptions{idle: relay.Idle})
	closeAll(connected(b, w, 1))
	b.ReportAllocs()
	for b.Loop() {
		closeAll(connected(b, w, 1))
	}
}

// connected opens streams to an echo, each having carried a byte.
func connected(t testing.TB, w *world, n int) []*net.TCPConn {
	t.Helper()
	var apps []*net.TCPConn
	for range n {
		app, _ := w.connect("10.0.0.1:80")
		roundTrip(t, app, 1)
		apps = append(apps, app)
	}
	return apps
}

func roundTrip(t testing.TB, app *net.TCPConn, size int) {
	p := make([]byte, size)
	exchangeOnce(t, app, p)
}

func closeAll(apps []*net.TCPConn) {
	for _, app := range apps {
		app.Close()
	}
}

func exchangeOnce(t testing.TB, app *net.TCPConn, p []byte) {
	if _, err := app.Write(p); err != nil {
		t.Error(err)
	}
	for n := 0; n < len(p); {
		k, err := app.Read(p[n:])
		if n += k; err != nil {
			t.Error(err)
			return
		}
	}
}
