package proxy

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
)

// What ends the reading of DNS queries is told, and they are read again, until
// their socket is closed.
func TestQueriesAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told bytes.Buffer
		log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&told), zap.InfoLevel))
		p := &Proxy{Config: Config{Recorder: telemetry.New(telemetry.Options{Log: log}), State: state.New()}}
		asking := &pod{}
		asking.ctx = t.Context()
		served := 0
		p.answerPackets(asking, func() error {
			if served++; served < 4 {
				return errors.New("no buffer space")
			}
			return &net.OpError{Op: "read", Err: net.ErrClosed}
		})
		if n := strings.Count(told.String(), "no buffer space"); served != 4 || n != 3 {
			t.Errorf("served %d times, want 4; told %d times, want 3:\n%s", served, n, &told)
		}

		// It was long ago that reading ended before: it begins again at once.
		served = 0
		var ended time.Time
		p.answerPackets(asking, func() error {
			if served++; served <= 10 {
				return errors.New("no buffer space") // the pauses become long
			}
			if served == 11 {
				<-time.After(time.Hour) // reading works
				ended = time.Now()
				return errors.New("no buffer space")
			}
			return &net.OpError{Op: "read", Err: net.ErrClosed}
		})
		if took := time.Since(ended); took > 10*time.Millisecond {
			t.Errorf("read again %v after an end that was the first in an hour", took)
		}

		var gone context.CancelFunc
		asking.ctx, gone = context.WithCancel(t.Context())
		p.answerPackets(asking, func() error {
			gone()
			return errors.New("no buffer space")
		})
	})
}
