package otlp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/internal/otlp/otlptest"
)

// What cannot be encoded is lost alone.
func TestUnencodableIsLostAlone(t *testing.T) {
	collector, url := otlptest.Listen(t, nil)
	e := exporter(t, url)
	end := run(t, e)
	for _, name := range []string{"a", "\xff", "b"} {
		e.Span("pod", named("pod\xff"), &trace.Span{Name: name})
	}
	spans := collector.Spans(t, func(s []otlptest.Span) bool { return len(s) == 2 })
	end()
	if got := e.Spans(); got != (Count{Sent: 2, Dropped: 1}) {
		t.Errorf("counted %+v", got)
	}
	if spans[0].Name != "a" || spans[1].Name != "b" || spans[0].Resource["service.name"] != "pod?" {
		t.Errorf("got %v", spans)
	}
}

// A collector that accepts and says nothing holds up the end once, and not again
// for each message that waits.
func TestEndAtASilentCollector(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e := exporter(t, "http://"+l.Addr().String())
	const sources, many = 100, 20 * maxBatch
	for i := range many {
		source := fmt.Sprint(i % sources)
		e.Span(source, named(source), &trace.Span{})
	}
	if n := len(e.spans.items); n < 15*maxBatch {
		t.Fatalf("only %d wait", n)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	if err := e.Run(ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*flushLimit {
		t.Errorf("the end took %v, want about %v", took, flushLimit)
	}
	if got := e.Spans(); got != (Count{Dropped: many}) || e.spans.room.Taken() != 0 {
		t.Errorf("counted %+v, %d bytes taken", got, e.spans.room.Taken())
	}
}

// What comes while an answer is waited for ends with it, once.
func TestEndWhileSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue("spans", false, func(ctx context.Context, _ []int) (int64, error) {
			<-ctx.Done()
			return 0, status.Error(codes.Canceled, "no answer")
		}, zap.NewNop())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error)
		go func() { ended <- q.run(ctx) }()
		for range 5 * maxBatch {
			q.add("", 0, 1, nil)
		}
		synctest.Wait() // for the first message to be sent
		began := time.Now()
		cancel()
		<-ended
		if took := time.Since(began); took > 2*flushLimit {
			t.Errorf("the end took %v, want at most %v for the answer and as long for the rest", took, flushLimit)
		}
		if got := q.count(); got != (Count{Dropped: 5 * maxBatch}) {
			t.Errorf("counted %+v", got)
		}
	})
}

// A message is sent as soon as it is full, by number or by bytes, and otherwise
// after a moment.
func TestFullIsSentAtOnce(t *testing.T) {
	for _, c := range []struct {
		name       string
		size, many int
		wait       time.Duration
	}{
		{"one", 1, 1, batchWait},
		{"nearly full", 1, maxBatch - 1, batchWait},
		{"many", 1, maxBatch, 0},
		{"large", maxMessage / 8, 8, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sent := make(chan int, 1)
				q := newQueue("spans", false, func(_ context.Context, batch []int) (int64, error) {
					sent <- len(batch)
					return 0, nil
				}, zap.NewNop())
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- q.run(ctx) }()
				began := time.Now()
				for range c.many {
					q.add("", 0, c.size, nil)
					synctest.Wait() // until it is waited for the next
				}
				n, waited := <-sent, time.Since(began)
				cancel()
				<-ended
				if n != c.many || waited != c.wait {
					t.Errorf("%d of %d after %v, want all after %v", n, c.many, waited, c.wait)
				}
			})
		})
	}
}

// Only what was rejected makes a failure of a partial success.
func TestRejection(t *testing.T) {
	failed := status.Error(codes.Unavailable, "later")
	for _, c := range []struct {
		err      error
		rejected int64
		message  string
		want     error
	}{
		{nil, 0, "", nil},
		{nil, 0, "a newer version would be welcome", nil},
		{nil, 1, "too old", errPartial},
		{nil, 1, "", errPartial},
		{failed, 0, "", failed},
	} {
		if got := rejection(c.err, c.rejected, c.message); !errors.Is(got, c.want) {
			t.Errorf("%v, %d rejected, %q: %v, want %v", c.err, c.rejected, c.message, got, c.want)
		}
	}
}
