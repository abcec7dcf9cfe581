package identity_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source hands every subscription to the test.
type source struct{ subscriptions chan subscription }

type subscription struct {
	ctx    context.Context
	id     identity.Subject
	update func(*identity.Material)
	failed func(error)
}

func (s source) Subscribe(ctx context.Context, id identity.Subject, update func(*identity.Material), failed func(error)) error {
	s.subscriptions <- subscription{ctx, id, update, failed}
	<-ctx.Done()
	return ctx.Err()
}

func startStore(t *testing.T, opts ...identity.Option) (*identity.Store, source) {
	t.Helper()
	src := source{make(chan subscription, 10)}
	store := identity.NewStore(src, opts...)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := store.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want the context's error", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return store, src
}

func next(t *testing.T, s source) subscription {
	t.Helper()
	select {
	case sub := <-s.subscriptions:
		return sub
	case <-time.After(10 * time.Second):
		t.Fatal("no subscription")
		return subscription{}
	}
}

func TestOneSubscriptionWhileHeld(t *testing.T) {
	store, src := startStore(t)
	first := store.Acquire(identity.Subject{Identity: alice})
	second := store.Acquire(identity.Subject{Identity: alice})
	sub := next(t, src)
	if sub.id.Identity != alice {
		t.Fatalf("subscribed to %v", sub.id)
	}
	first()
	first() // one holder's second release is not another's first
	if sub.ctx.Err() != nil {
		t.Fatal("unsubscribed while still held")
	}
	second()
	<-sub.ctx.Done()
	if len(store.All()) != 0 {
		t.Errorf("still there: %v", store.All())
	}
	defer store.Acquire(identity.Subject{Identity: alice})()
	if again := next(t, src); again.ctx.Err() != nil {
		t.Error("the new subscription began ended")
	}
	if len(src.subscriptions) != 0 {
		t.Error("more subscriptions than holders called for")
	}
}

func TestReleaseBeforeRun(t *testing.T) {
	src := source{make(chan subscription, 1)}
	store := identity.NewStore(src)
	store.Acquire(identity.Subject{Identity: alice})()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := store.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if len(src.subscriptions) != 0 {
		t.Error("subscribed to what nobody holds")
	}
}

func TestGetWaits(t *testing.T) {
	ca := identitytest.NewCA(t)
	store, src := startStore(t)
	defer store.Acquire(identity.Subject{Identity: alice})()
	got := make(chan *identity.Material)
	go func() {
		m, err := store.Get(t.Context(), identity.Subject{Identity: alice})
		if err != nil {
			t.Error(err)
		}
		got <- m
	}()
	want := ca.Issue(t, alice)
	sub := next(t, src)
	sub.failed(errors.New("not yet"))
	sub.update(want)
	if m := <-got; m != want {
		t.Errorf("Get = %v", m)
	}
	if all := store.All(); len(all) != 1 || all[0].Err != nil || !all[0].NotAfter().Equal(want.NotAfter()) {
		t.Errorf("status %+v", all)
	}
}

func TestGetNamesTheFailure(t *testing.T) {
	var reported []identity.Status
	store, src := startStore(t, identity.WithFailures(func(s identity.Status) { reported = append(reported, s) }))
	release := store.Acquire(identity.Subject{Identity: alice})
	failure := errors.New("the CA said no")
	next(t, src).failed(failure)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := store.Get(ctx, identity.Subject{Identity: alice})
	if !errors.Is(err, failure) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), alice.String()) {
		t.Errorf("Get = %v", err)
	}
	if all := store.All(); len(all) != 1 || !errors.Is(all[0].Err, failure) {
		t.Errorf("status %+v", all)
	}
	if err := store.Lack(identity.Subject{Identity: alice}); !errors.Is(err, failure) {
		t.Errorf("Lack = %v", err)
	}
	if len(reported) != 1 || reported[0].Failures != 1 || !errors.Is(reported[0].Err, failure) {
		t.Errorf("reported %+v", reported)
	}
	release()
	if _, err := store.Get(t.Context(), identity.Subject{Identity: bob}); err == nil {
		t.Error("Get found what nobody holds")
	}
}

func TestReleaseEndsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := identity.NewStore(source{})
		release := store.Acquire(identity.Subject{Identity: alice})
		var err error
		go func() { _, err = store.Get(t.Context(), identity.Subject{Identity: alice}) }()
		synctest.Wait()
		release()
		synctest.Wait()
		if err == nil {
			t.Error("Get goes on waiting for what was released")
		}
	})
}

func TestExpiredIsNeverReturned(t *testing.T) {
	ca := identitytest.NewCA(t)
	var clock clock
	clock.set(time.Now())
	store, src := startStore(t, identity.WithClock(clock.now))
	defer store.Acquire(identity.Subject{Identity: alice})()
	sub := next(t, src)
	old := ca.Issue(t, alice)
	sub.update(old)
	if m, err := store.Get(t.Context(), identity.Subject{Identity: alice}); m != old {
		t.Fatal(m, err)
	}
	clock.set(old.NotAfter())
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if m, err := store.Get(ctx, identity.Subject{Identity: alice}); err == nil {
		t.Fatalf("Get = %v after its end", m)
	}
	template := identitytest.Template(t, alice.String())
	template.NotAfter = old.NotAfter().Add(time.Hour)
	renewed := ca.IssueTemplate(t, template)
	changed := store.Changed()
	sub.update(renewed)
	<-changed
	if m, err := store.Get(t.Context(), identity.Subject{Identity: alice}); m != renewed {
		t.Fatal(m, err)
	}
}

func TestWrongIdentityFromTheSource(t *testing.T) {
	ca := identitytest.NewCA(t)
	store, src := startStore(t)
	defer store.Acquire(identity.Subject{Identity: alice})()
	next(t, src).update(ca.Issue(t, bob))
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := store.Get(ctx, identity.Subject{Identity: alice}); err == nil || !strings.Contains(err.Error(), bob.String()) {
		t.Errorf("Get = %v", err)
	}
}

func TestExportImport(t *testing.T) {
	ca := identitytest.NewCA(t)
	var clock clock
	clock.set(time.Now())
	store, src := startStore(t, identity.WithClock(clock.now))
	defer store.Acquire(identity.Subject{Identity: alice})()
	want := ca.Issue(t, alice)
	next(t, src).update(want)
	defer store.Acquire(identity.Subject{Identity: bob})()
	brief := identitytest.Template(t, bob.String())
	brief.NotAfter = time.Now().Add(time.Minute)
	next(t, src).update(ca.IssueTemplate(t, brief))
	data, err := store.Export()
	if err != nil {
		t.Fatal(err)
	}

	clock.set(time.Now().Add(2 * time.Minute)) // bob's has ended
	successor, _ := startStore(t, identity.WithClock(clock.now))
	if err := successor.Import(data); err != nil {
		t.Fatal(err)
	}
	kept, err := successor.Export() // not acquired yet, and not lost to a second restart
	if err != nil || bytes.Equal(kept, data) {
		t.Errorf("the expired one was exported again (%v)", err)
	}
	defer successor.Acquire(identity.Subject{Identity: alice})()
	defer successor.Acquire(identity.Subject{Identity: bob})()
	m, err := successor.Get(t.Context(), identity.Subject{Identity: alice})
	if err != nil {
		t.Fatal(err)
	}
	if !m.Leaf.Equal(want.Leaf) || !m.Certificate.PrivateKey.(*ecdsa.PrivateKey).Equal(want.Certificate.PrivateKey) ||
		!m.Roots.Equal(want.Roots) {
		t.Error("something was lost on the way")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if m, err := successor.Get(ctx, identity.Subject{Identity: bob}); err == nil {
		t.Errorf("an expired one was imported: %v", m.NotAfter())
	}

	unused := identity.NewStore(src, identity.WithClock(clock.now))
	if err := unused.Import(data); err != nil {
		t.Fatal(err)
	}
	clock.set(clock.now().Add(11 * time.Minute))
	if left, err := unused.Export(); err != nil || !bytes.Contains(left, []byte(`"materials":null`)) {
		t.Errorf("keys of pods that never came back are kept: %d bytes, %v", len(left), err)
	}
}

func TestImportDoesNotReplaceNewer(t *testing.T) {
	ca := identitytest.NewCA(t)
	store, src := startStore(t)
	defer store.Acquire(identity.Subject{Identity: alice})()
	sub := next(t, src)
	sub.update(ca.Issue(t, alice))
	data, err := store.Export()
	if err != nil {
		t.Fatal(err)
	}
	newer := ca.Issue(t, alice)
	sub.update(newer)
	if err := store.Import(data); err != nil {
		t.Fatal(err)
	}
	if m, err := store.Get(t.Context(), identity.Subject{Identity: alice}); m != newer {
		t.Errorf("Get = %v, %v; want the newer one", m, err)
	}
}

func TestImportRefuses(t *testing.T) {
	ca := identitytest.NewCA(t)
	store, src := startStore(t)
	defer store.Acquire(identity.Subject{Identity: alice})()
	next(t, src).update(ca.Issue(t, alice))
	data, err := store.Export()
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(identitytest.NewKey(t))
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string][]byte{
		"nothing":       nil,
		"noise":         []byte("x"),
		"cut":           data[:len(data)-10],
		"other version": bytes.Replace(data, []byte(`"version":1`), []byte(`"version":2`), 1),
		"no key":        bytes.Replace(data, []byte(`"key"`), []byte(`"yek"`), 1),
		"other key":     replaceKey(data, key),
		"no roots":      bytes.Replace(data, []byte(`"roots"`), []byte(`"stoor"`), 1),
	}
	for name, bad := range cases {
		if err := identity.NewStore(src).Import(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func replaceKey(data, key []byte) []byte {
	before, rest, _ := bytes.Cut(data, []byte(`"key":"`))
	_, after, _ := bytes.Cut(rest, []byte(`"`))
	encoded := base64.StdEncoding.EncodeToString(key)
	return []byte(string(before) + `"key":"` + encoded + `"` + string(after))
}

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
}
