package dns

import (
	"context"
	"net"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// BenchmarkAnswer is a query from its arrival at the socket until its answer
// has been sent, with the client's own half of the system calls.
func BenchmarkAnswer(b *testing.B) {
	for name, query := range map[string]string{
		"name": "web.", "full": "web.mine.svc.cluster.local.", "search": "shop.example.com.mine.svc.cluster.local.",
	} {
		b.Run(name, func(b *testing.B) { benchmark(b, query) })
	}
}

func benchmark(b *testing.B, name string) {
	p := newPod(b, mesh(), forwarderTo(b, 1, "127.0.0.1"), func(c *Config) { c.Observe = func(Event) {} })
	conn, err := net.Dial("udp", p.addr)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(10 * patience)); err != nil {
		b.Fatal(err)
	}
	packets := ipv4.NewPacketConn(conn.(*net.UDPConn))
	raw, err := about(name, mdns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	out, in := make([]ipv4.Message, batchSize), make([]ipv4.Message, batchSize)
	for i := range out {
		out[i].Buffers, in[i].Buffers = [][]byte{raw}, [][]byte{make([]byte, minUDP)}
	}
	b.ReportAllocs()
	before := cpu(b)
	for done := 0; done < b.N; {
		n, err := packets.WriteBatch(out[:min(batchSize, b.N-done)], 0)
		if err != nil {
			b.Fatal(err)
		}
		for got := 0; got < n; {
			more, err := packets.ReadBatch(in[:n-got], 0)
			if err != nil {
				b.Fatal(err)
			}
			got += more
		}
		done += n
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "answers/s")
	b.ReportMetric(float64(b.N)/(cpu(b)-before).Seconds(), "answers/core-s")
}

// cpu is what this process has used so far, which other processes do not change.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkLookup is what the mesh is asked, and the message about it.
func BenchmarkLookup(b *testing.B) {
	p := newPod(b, mesh(), forwarderTo(b, 1, "127.0.0.1"), func(c *Config) { c.Observe = func(Event) {} })
	raw, err := about("web.mine.svc.cluster.local.", mdns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, out, done := p.server.own(raw, false); !done || out == nil {
			b.Fatal("no answer")
		}
	}
}

// BenchmarkForward is a query that another server answers.
func BenchmarkForward(b *testing.B) {
	up := newUpstream(b, says(b, "www.example.org. 5 IN A 192.0.2.1"))
	f := forwarderTo(b, up.addr.Port(), "127.0.0.1")
	raw, err := about("www.example.org.", mdns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	q, err := parse(raw)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.ask(context.Background(), nil, q); err != nil {
			b.Fatal(err)
		}
	}
}
