package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// rotating is a world in which certificates of both sides end all the time.
type rotating struct {
	*world
	life    atomic.Int64 // of both, which is doubled where a handshake takes longer
	refused atomic.Int64 // streams that the server had to refuse for the end of one
}

func newRotating(t *testing.T) *rotating {
	t.Helper()
	ticking := timing{tick: 5 * time.Millisecond, settle: patience, ping: patience, idle: patience}
	w := &rotating{world: newWorld(t, forward(application(t, echo)), worldOptions{client: PoolConfig{timing: ticking}, server: ServerConfig{timing: ticking}})}
	w.life.Store(int64(20 * time.Millisecond))
	client := w.ca.issue(t, "spiffe://td/ns/a/sa/client", time.Hour)
	w.pool.config.TLS = func(context.Context, Key) (*tls.Config, time.Time, error) {
		return w.ca.config(client), time.Now().Add(time.Duration(w.life.Load())), nil
	}
	w.serverEnd = func() time.Time { return time.Now().Add(rand.N(time.Duration(w.life.Load()))) }
	return w
}

// carry takes an application's connection to the server, as a proxy does: what
// has not reached anybody is tried again.
func (w *rotating) carry(ctx context.Context, app *net.TCPConn) error {
	defer func() { _ = app.Close() }()
	var replay *Replay
	for tries := 1; ; tries++ {
		if tries%4 == 0 {
			w.life.Add(w.life.Load())
		}
		s, err := w.pool.Open(ctx, w.key, Request{Authority: "10.0.0.1:80"})
		switch {
		case errors.Is(err, ErrCertificateEnded), errors.Is(err, errNoStreams):
			continue
		case err != nil:
			return err
		}
		done := make(chan relay.Result, 1)
		context.AfterFunc(ctx, func() { s.Abort(context.Cause(ctx)) })
		err = s.Relay(app, replay, send(done))
		var refused *RefusedError
		switch {
		case errors.As(err, &refused) && refused.Retryable():
			w.refused.Add(1)
			replay = refused.Replay
			continue
		case err != nil:
			return err
		}
		if r := <-done; r.End != relay.Finished {
			return fmt.Errorf("the stream ended with %+v", r)
		}
		return nil
	}
}

// exchange sends a text to the server and back through a new stream.
func (w *rotating) exchange(t *testing.T, text []byte) {
	t.Helper()
	app, near := tcpPair(t)
	defer func() { _ = app.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	carried := make(chan error, 1)
	go func() { carried <- w.carry(ctx, near) }()
	_, err := app.Write(text)
	err = errors.Join(err, app.CloseWrite())
	got, readErr := io.ReadAll(app)
	if err = errors.Join(err, readErr, <-carried); err != nil || !bytes.Equal(got, text) {
		t.Fatalf("%d bytes of %d came back, %v", len(got), len(text), err)
	}
}

// TestNoStreamIsLostToRotations: certificates end and connections retire every
// few milliseconds on both sides, and every new stream gets through.
func TestNoStreamIsLostToRotations(t *testing.T) {
	const workers, each = 8, 60
	w := newRotating(t)
	ctx, cancel := context.WithCancel(t.Context())
	var evicting sync.WaitGroup
	evicting.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.pool.Evict(func(Key) bool { return true }, false)
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		evicting.Wait()
		if n := w.dialed(); n < 20 {
			t.Errorf("only %d connections for %d streams: nothing was rotated", n, workers*each)
		}
		t.Logf("%d connections, %d streams tried again", w.dialed(), w.refused.Load())
	})
	for i := range workers {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			for n := range each {
				w.exchange(t, bytes.Repeat([]byte{byte(n)}, 1+rand.IntN(3000)))
			}
		})
	}
}
