package client

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

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
	if n := told.Load(); n != 2 {
		t.Errorf("told %d times of a large message and its export, want 2", n)
	}
	for i := range 2 {
		w := modeltest.Workload(100 + i)
		st.mustAck(t, addresses(fmt.Sprint(i+3), res(w.UID, "1", must(wire.EncodeWorkload(w)))))
		c.sink.one(t)
		export = next(t, "an export of everything", saved)
	}
	if n := told.Load(); n != 2 || len(export) < largeMessage {
		t.Errorf("told %d times after small changes to %d bytes, want 2", n, len(export))
	}
	restored := 0
	config := Config{Sink: newRecorder(), Burst: func() { restored++ }, Saved: func([]byte) {}}
	later := New(config)
	if err := later.Restore(export); err != nil || restored != 1 {
		t.Errorf("told %d times of what is restored: %v", restored, err)
	}
	later.handle(policies("1"))
	for range 2 {
		later.handOut()
		if restored != 2 {
			t.Errorf("told %d times of what is restored and its export, want 2", restored)
		}
	}
}

// What is saved while a large message is decoded is not yet its outcome.
func TestTellsOfExportOfLargeMessage(t *testing.T) {
	told := 0
	c := New(Config{Sink: newRecorder(), Burst: func() { told++ }, Saved: func([]byte) {}})
	for _, step := range []struct {
		name string
		do   func()
		told int
	}{
		{"a small message", func() { c.burst(largeMessage - 1) }, 0},
		{"an export", c.handOut, 0},
		{"a large message", func() { c.burst(largeMessage) }, 1},
		{"an export without it", c.handOut, 1},
		{"its update", func() { c.handle(policies("1")) }, 1},
		{"the export of it", c.handOut, 2},
		{"one more export", c.handOut, 2},
	} {
		if step.do(); told != step.told {
			t.Errorf("%s: told %d times, want %d", step.name, told, step.told)
		}
	}
}

// A large message is not decoded by way of memory that gRPC keeps.
func TestLargeMessagesHaveMemoryOfTheirOwn(t *testing.T) {
	name := strings.Repeat("a", largeMessage)
	body := must(proto.Marshal(&discovery.DeltaDiscoveryResponse{Nonce: name}))
	half := mem.BufferSlice{mem.SliceBuffer(body[:largeMessage/2]), mem.SliceBuffer(body[largeMessage/2:])}
	var got discovery.DeltaDiscoveryResponse
	if err := (codec{burst: func(int) {}}).Unmarshal(half, &got); err != nil || got.GetNonce() != name { // without gRPC's own
		t.Errorf("decoded are %d bytes, %v", len(got.GetNonce()), err)
	}
}
