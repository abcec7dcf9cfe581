package client

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/xds/wire"
)

// exported is what a client holds that has been sent a small mesh.
func exported(t *testing.T) []byte {
	t.Helper()
	c := New(Config{Sink: newRecorder()})
	c.handle(policies("1", aPolicy("p", "v1", 80), bad("ns/q", "v1", aPolicy("other", "v1", 80))))
	c.handle(addresses("2", aWorkload("a", "v1"), aWorkload("b", "v1"), aService("h", "v1")))
	c.handle(addresses("3", bad("b", "v2", aWorkload("x", "v2"))))
	data, err := c.Export()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRestoredBeforeTheServerIsThere(t *testing.T) {
	srv := newServer(t)
	srv.stop()
	config, sink := srv.config(t), newRecorder()
	config.Sink = sink
	client := New(config)
	if err := client.Restore(exported(t)); err != nil {
		t.Fatal(err)
	}
	u := sink.one(t)
	if u.AddressesComplete || u.PoliciesComplete || len(u.Workloads) != 2 || len(u.Services) != 1 || len(u.Policies) != 2 {
		t.Errorf("update %+v, want all of it and nothing complete", u)
	}
	if p, _ := sink.snapshot.Policy("ns/q"); p == nil || p.Unknown == "" {
		t.Errorf("the policy that was rejected is %+v, want a denial", p)
	}

	running := run(t, client) // it cannot reach the server
	next(t, "readiness", client.Ready())
	if u := sink.one(t); !u.AddressesComplete || !u.PoliciesComplete || len(u.Workloads) != 0 {
		t.Errorf("update %+v, want both lists complete", u)
	}
	if data, err := running.Export(); err != nil || !bytes.Equal(data, exported(t)) {
		t.Errorf("the next export differs from the restored one (%v)", err)
	}

	srv.start(t)
	st := next(t, "a stream", srv.streams)
	p, a := st.subscriptions(t)
	if diff := cmp.Diff(map[string]string{"ns/p": "v1", "ns/q": ""}, p.GetInitialResourceVersions()); diff != "" {
		t.Errorf("policies' versions -want +got:\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"a": "v1", "b": "", "ns/h": "v1"}, a.GetInitialResourceVersions()); diff != "" {
		t.Errorf("addresses' versions -want +got:\n%s", diff)
	}
	st.mustAck(t, policies("1"))
	sink.none(t)
	st.mustAck(t, removing(addresses("2"), "a"))
	if u := sink.one(t); u.AddressesComplete || !cmp.Equal(u.RemovedAddresses, []string{"a"}) {
		t.Errorf("update %+v", u)
	}
}

func TestRestoredHalf(t *testing.T) {
	first := New(Config{Sink: newRecorder()})
	first.handle(policies("1", aPolicy("p", "v1", 80)))
	data, err := first.Export()
	if err != nil {
		t.Fatal(err)
	}
	sink := newRecorder()
	c := New(Config{Sink: sink})
	if err := c.Restore(data); err != nil {
		t.Fatal(err)
	}
	if u := sink.one(t); u.PoliciesComplete || u.AddressesComplete {
		t.Errorf("update %+v", u)
	}
	c.trust()
	if u := sink.one(t); !u.PoliciesComplete || u.AddressesComplete {
		t.Errorf("update %+v, want the policies complete", u)
	}
	select {
	case <-c.Ready():
		t.Error("ready without addresses")
	default:
	}
	c.handle(addresses("1"))
	next(t, "readiness", c.Ready())
}

// What was saved may be old: it decides nothing while the server may yet say
// what has changed, and then never as it was.
func TestRestoredIsNotTrustedBeforeTheServerAnswers(t *testing.T) {
	srv := newServer(t)
	config, sink := srv.config(t), newRecorder()
	config.Sink = sink
	client := New(config)
	if err := client.Restore(exported(t)); err != nil {
		t.Fatal(err)
	}
	sink.one(t)
	run(t, client)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	st.mustAck(t, policies("1", aPolicy("p", "v2", 443)))
	if u := sink.one(t); !u.PoliciesComplete || len(u.Policies) != 1 {
		t.Errorf("update %+v, want the changed policy together with the complete list", u)
	}
	st.mustAck(t, addresses("2"))
	if u := sink.one(t); !u.AddressesComplete {
		t.Errorf("update %+v, want the addresses complete", u)
	}
	client.trust()
	sink.none(t)
}

func TestRestoreRefuses(t *testing.T) {
	data := exported(t)
	tests := map[string]struct {
		data   []byte
		limit  int
		reason string
	}{
		"cut off":   {data[:len(data)-1], 0, "restore xDS state"},
		"garbage":   {[]byte("hello"), 0, "restore xDS state"},
		"too large": {data, len(data) - 1, "above the limit"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sink := newRecorder()
			err := New(Config{Sink: sink, MaxSaved: tt.limit}).Restore(tt.data)
			if err == nil || !strings.Contains(err.Error(), tt.reason) {
				t.Errorf("error %v, want %q", err, tt.reason)
			}
			sink.none(t)
		})
	}
	sink := newRecorder()
	if err := New(Config{Sink: sink}).Restore(nil); err != nil {
		t.Errorf("nothing to restore: %v", err)
	}
	sink.none(t)
}

func TestSavedSoonAndAtTheEnd(t *testing.T) {
	srv := newServer(t)
	exports := make(chan []byte, 10)
	config := srv.config(t)
	config.Sink, config.Saved = newRecorder(), func(data []byte) { exports <- data }
	client := New(config)
	client.saveEvery = time.Hour
	c := run(t, client)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	st.mustAck(t, policies("1", aPolicy("p", "v1", 80)))
	first := next(t, "the first export", exports)
	st.mustAck(t, addresses("2", aWorkload("a", "v1")))
	st.mustAck(t, addresses("3", aWorkload("b", "v1")))
	if len(exports) > 0 {
		t.Error("saved again at once")
	}
	c.stop()
	last, err := c.Export()
	if err != nil {
		t.Fatal(err)
	}
	if got := next(t, "the last export", exports); !bytes.Equal(got, last) || bytes.Equal(got, first) || len(exports) > 0 {
		t.Errorf("the last export is not what is held at the end")
	}
}

func TestSavedRepeatedly(t *testing.T) {
	srv := newServer(t)
	exports := make(chan []byte)
	config := srv.config(t)
	config.Sink, config.Saved = newRecorder(), func(data []byte) { exports <- data }
	client := New(config)
	client.saveEvery = time.Microsecond
	run(t, client)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	for _, uid := range []string{"a", "b", "c"} {
		st.mustAck(t, addresses(uid, aWorkload(uid, "v1")))
		if data := next(t, "an export", exports); !bytes.Contains(data, []byte(wire.AddressType)) {
			t.Errorf("export %q", data)
		}
	}
}

// What no longer holds must not be found by a successor.
func TestTooLargeToSave(t *testing.T) {
	srv := newServer(t)
	exports := make(chan []byte, 10)
	c := srv.startClient(t, func(c *Config) {
		c.MaxSaved = 100
		c.Saved = func(data []byte) { exports <- data }
	})
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	st.mustAck(t, addresses("1", aWorkload("a", "v1"), aWorkload("b", "v1")))
	if data := next(t, "an export", exports); len(data) != 0 {
		t.Errorf("exported %d bytes", len(data))
	}
	if _, err := c.Export(); err == nil || !strings.Contains(err.Error(), "above the limit of 100") {
		t.Errorf("error %v", err)
	}
	if s := c.Status(); !strings.Contains(s.SaveError, "above the limit") {
		t.Errorf("status %+v", s)
	}
	if s := c.sink.snapshot; s.Workload("a") == nil {
		t.Error("not applied")
	}
}
