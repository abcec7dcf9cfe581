package otlp

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/internal/portions"
)

// Bounds of what waits and of how it is sent.
const (
	maxWaiting = 4 << 20 // bytes, of each kind
	maxBatch   = 512     // in one message
	maxMessage = 1 << 20 // bytes of one; collectors take 4 MiB
	overhead   = 512     // bytes of each besides its encoding: of the queue, and whose it is

	batchWait   = time.Second      // for more, before a message is sent
	sendLimit   = 10 * time.Second // of one attempt
	firstRetry  = time.Second
	maxRetry    = 15 * time.Second
	givingUp    = time.Minute // after which a batch is dropped
	flushLimit  = 3 * time.Second
	flushRetry  = 100 * time.Millisecond
	tellAgainIn = time.Minute // how often a collector that takes nothing is logged
)

// waiting is one that is to be sent.
type waiting[T any] struct {
	value  T
	source string
	size   int // of its encoding
}

// queue holds what waits to be sent, encoded: a span's structs take four times as
// much, and would keep all of the text alive of which they have a part.
type queue[T any] struct {
	name string
	send func(context.Context, []T) (rejected int64, err error)
	log  *zap.Logger
	room *portions.Portions[string]
	wake chan struct{} // has one if there may be something

	mu    sync.Mutex
	items []waiting[T]
	bytes int // of their encodings

	sent, dropped atomic.Uint64
	told          time.Time // when a failure was logged; zero once it is over
}

func newQueue[T any](name string, halve bool, send func(context.Context, []T) (int64, error), log *zap.Logger) *queue[T] {
	return &queue[T]{
		name: name, send: send, log: log,
		room: portions.New[string](maxWaiting, maxWaiting, halve), wake: make(chan struct{}, 1),
	}
}

func (q *queue[T]) count() Count { return Count{Sent: q.sent.Load(), Dropped: q.dropped.Load()} }

// add never waits. What could not be encoded is dropped.
func (q *queue[T]) add(source string, value T, size int, err error) {
	if err != nil || !q.room.Take(source, size+overhead) {
		q.dropped.Add(1)
		return
	}
	q.mu.Lock()
	q.items = append(q.items, waiting[T]{value, source, size})
	q.bytes += size
	wake := len(q.items) == 1 || q.full()
	q.mu.Unlock()
	if wake {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
}

// run sends until the context ends, and then what is left.
func (q *queue[T]) run(ctx context.Context) error {
	var left []waiting[T]
	for left == nil && q.await(ctx) {
		if batch := q.take(); !q.deliver(ctx, batch) {
			left = batch
		}
	}
	if left == nil {
		left = q.take()
	}
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
	defer cancel()
	for ; len(left) > 0; left = q.take() {
		if flush.Err() != nil || !q.deliver(flush, left) {
			q.settle(left, len(left))
		}
	}
	return ctx.Err()
}

// await waits until there is something, and then a moment for more, unless a
// message is full before. It is false once the context has ended.
func (q *queue[T]) await(ctx context.Context) bool {
	var moment <-chan time.Time
	for ctx.Err() == nil {
		some, full := q.waiting()
		if full {
			return true
		}
		if some && moment == nil {
			t := time.NewTimer(batchWait)
			defer t.Stop()
			moment = t.C
		}
		select {
		case <-moment:
			return true
		case <-q.wake:
		case <-ctx.Done():
		}
	}
	return false
}

// waiting reports whether there is something, and whether it fills a message.
func (q *queue[T]) waiting() (some, full bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items) > 0, q.full()
}

func (q *queue[T]) full() bool { return len(q.items) >= maxBatch || q.bytes >= maxMessage }

// take takes what fits into a message. Its room is given back once it has been
// sent or dropped.
func (q *queue[T]) take() []waiting[T] {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, 0
	for n < len(q.items) && n < maxBatch && (n == 0 || size+q.items[n].size <= maxMessage) {
		size += q.items[n].size
		n++
	}
	q.bytes -= size
	batch := q.items[:n:n]
	if q.items = q.items[n:]; len(q.items) == 0 {
		q.items = nil
	}
	return batch
}

// deliver sends a batch, again and again while that may help. It is false if the
// context has ended before that was settled.
func (q *queue[T]) deliver(ctx context.Context, batch []waiting[T]) bool {
	values := make([]T, len(batch))
	for i := range batch {
		values[i] = batch[i].value
	}
	rejected, err := q.attempts(ctx, values)
	switch {
	case err == nil || errors.Is(err, errPartial):
		q.settle(batch, int(min(max(rejected, 0), int64(len(batch)))))
	case passing(err) && ctx.Err() != nil:
		return false
	default:
		q.settle(batch, len(batch))
	}
	return true
}

// settle counts a batch of which so many were dropped, and gives back its room.
func (q *queue[T]) settle(batch []waiting[T], dropped int) {
	q.dropped.Add(uint64(dropped))
	q.sent.Add(uint64(len(batch) - dropped))
	for i := range batch {
		q.room.Give(batch[i].source, batch[i].size+overhead)
	}
	clear(batch) // which is of an array that the queue goes on with
}

func (q *queue[T]) attempts(ctx context.Context, values []T) (rejected int64, err error) {
	retry, began := firstRetry, time.Now()
	if _, flushing := ctx.Deadline(); flushing {
		retry = flushRetry
	}
	for {
		rejected, err = q.attempt(ctx, values)
		q.tell(err)
		if err == nil || !passing(err) || time.Since(began) > givingUp || !pause(ctx, retry) {
			return rejected, err
		}
		retry = min(2*retry, maxRetry)
	}
}

// attempt sends once. If the context ends meanwhile, the answer is waited for a
// moment longer: who sends again what has been taken sends it twice. Flushing is
// that moment already.
func (q *queue[T]) attempt(ctx context.Context, values []T) (rejected int64, err error) {
	if _, flushing := ctx.Deadline(); flushing {
		return q.send(ctx, values)
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendLimit)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(flushLimit, cancel) })()
	return q.send(limited, values)
}

// passing reports whether OTLP has a sender try again.
func passing(err error) bool {
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss:
		return true
	default:
		return false
	}
}

// tell logs that nothing is taken, now and then, and that it is again.
func (q *queue[T]) tell(err error) {
	switch {
	case err != nil && time.Since(q.told) >= tellAgainIn:
		q.told = time.Now()
		q.log.Warn("OTLP: "+q.name+" are not taken; is --otlp a collector that receives OTLP over gRPC?", zap.Error(err), zap.Uint64("dropped", q.dropped.Load()))
	case err == nil && !q.told.IsZero():
		q.told = time.Time{}
		q.log.Info("OTLP: "+q.name+" are taken again", zap.Uint64("dropped", q.dropped.Load()))
	}
}

// pause is false if the context has ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
