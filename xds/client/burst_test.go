package client

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tacit-mesh/tacit/xds/model/modeltest"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// Who keeps others from waiting is told of large messages alone, and of each
// before anything is done with it.
func TestTellsOfLargeMessages(t *testing.T) {
	var told, applied atomic.Int32
	srv := newServer(t)
	saved := make(chan []byte, 10)
	c := srv.startClient(t, func(config *Config) {
		config.Saved = func(export []byte) { saved <- export }
		config.Burst = func() {
			if told.Add(1) == 1 {
				applied.Store(int32(len(config.Sink.(*recorder).updates)))
			}
		}
	})
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	st.mustAck(t, policies("1"))
	c.sink.one(t)
	next(t, "an export", saved)
	if told.Load() != 0 {
		t.Error("told of a small message")
	}
	long := addresses("2")
	for i := range 50 {
		w := modeltest.Workload(i)
		w.WorkloadName = strings.Repeat("a", 200)
		r := res(w.UID, "1", must(wire.EncodeWorkload(w)))
		r.Version = strings.Repeat("v", largeMessage/50)
		long.Resources = append(long.Resources, r)
	}
	st.mustAck(t, long)
	c.sink.one(t)
	if applied.Load() != 0 || told.Load() == 0 {
		t.Errorf("told %d times, with %d updates applied before that", told.Load(), applied.Load())
	}
	export := next(t, "an export", saved)
	for len(export) < largeMessage {
		export = next(t, "an export of it", saved)
	}
	if told.Load() < 2 {
		t.Error("not told of the export")
	}
	restored := 0
	config := Config{Sink: newRecorder(), Burst: func() { restored++ }}
	if err := New(config).Restore(export); err != nil || restored != 1 {
		t.Errorf("told %d times of what is restored: %v", restored, err)
	}
}
