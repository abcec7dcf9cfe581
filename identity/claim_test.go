package identity_test

import (
	"context"
	"errors"
	"testing"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
)

func byName() identity.Option {
	return identity.WithSelectors(func(p identity.Pod) string { return "pod-name:" + p.Name })
}

// What is known of a pod changes while a connection waits for its certificate:
// it goes on waiting, for the one that is due by that.
func TestClaimChangesWhileSomebodyWaits(t *testing.T) {
	ca := identitytest.NewCA(t)
	store, src := startStore(t, byName())
	claim := store.Claim(identity.Pod{Identity: alice, Name: "one"})
	defer claim.Release()
	first := next(t, src)
	type result struct {
		m   *identity.Material
		err error
	}
	got := make(chan result, 1)
	ctx, waiting := waited(t.Context())
	go func() {
		m, err := claim.Get(ctx)
		got <- result{m, err}
	}()
	<-waiting
	claim.Change(identity.Pod{Identity: alice, Name: "two"})
	<-first.ctx.Done()
	second := next(t, src)
	if second.id.Selectors != "pod-name:two" {
		t.Errorf("asked for %q", second.id.Selectors)
	}
	want := ca.Issue(t, alice)
	second.update(want)
	if r := <-got; r.m != want || r.err != nil {
		t.Errorf("Get = %v, %v", r.m, r.err)
	}
}

// waited tells when somebody waits for the context.
func waited(ctx context.Context) (context.Context, <-chan struct{}) {
	w := &waitedFor{ctx, make(chan struct{}, 1)}
	return w, w.begun
}

type waitedFor struct {
	context.Context
	begun chan struct{}
}

func (w *waitedFor) Done() <-chan struct{} {
	select {
	case w.begun <- struct{}{}:
	default:
	}
	return w.Context.Done()
}

// A certificate serves on until there is one by what is known now, and that
// there is none is told; one of another identity does not.
func TestClaimKeepsWhatItHas(t *testing.T) {
	ca := identitytest.NewCA(t)
	store, src := startStore(t, byName())
	claim := store.Claim(identity.Pod{Identity: alice, Name: "one"})
	had := ca.Issue(t, alice)
	next(t, src).update(had)
	claim.Change(identity.Pod{Identity: alice, Name: "one"}) // nothing new
	if len(src.subscriptions) != 0 {
		t.Error("asked again although nothing has changed")
	}

	claim.Change(identity.Pod{Identity: alice, Name: "two"})
	now, cancel := context.WithCancel(t.Context())
	cancel() // nothing is waited for
	if m, err := claim.Get(now); m != had {
		t.Errorf("Get = %v, %v; want the one it had", m, err)
	}
	second := next(t, src)
	second.failed(errors.New("no entry"))
	if all := store.All(); len(all) != 1 || all[0].Err == nil || all[0].Leaf != had.Leaf || all[0].Received.IsZero() {
		t.Errorf("status %+v", all)
	}
	newer := ca.Issue(t, alice)
	second.update(newer)
	if m, err := claim.Get(now); m != newer {
		t.Errorf("Get = %v, %v; want the newer one", m, err)
	}

	claim.Change(identity.Pod{Identity: bob, Name: "two"})
	if m, err := claim.Get(now); err == nil || claim.Lack() == nil {
		t.Errorf("Get = %v as another identity", m)
	}
	third := next(t, src)
	claim.Release()
	<-third.ctx.Done()
	if all := store.All(); len(all) != 0 {
		t.Errorf("held on: %+v", all)
	}
}
