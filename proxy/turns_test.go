package proxy

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/model"
)

// A caller whose questions are not answered waits for its own, and leaves slots
// to all others, however many it has waiting.
func TestTurnsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newShare(1).asking
		ctx, cancel := context.WithCancel(t.Context())
		greedy, got := arrived4, 0
		done := make(chan bool)
		for range 2 * maxAsking {
			go func() { done <- turns.take(ctx, greedy) }()
		}
		synctest.Wait()
		for more := true; more; {
			select {
			case <-done:
				got++
				synctest.Wait()
			default:
				more = false
			}
		}
		if got == 0 || got > maxAsking/2 {
			t.Errorf("one caller has %d of %d slots", got, maxAsking)
		}

		// What is given back goes to who waits.
		turns.give(greedy)
		if !<-done {
			t.Error("who waits gets nothing of what was given back")
		}

		atOnce, late := context.WithCancel(t.Context())
		late()
		others := []netip.Addr{greedy.Next(), greedy.Next().Next(), greedy.Next().Next().Next()}
		for _, other := range others {
			if !turns.take(atOnce, other) {
				t.Errorf("%v is kept out", other)
			}
		}

		cancel()
		for range 2*maxAsking - got - 1 {
			if <-done {
				t.Fatal("somebody has a slot that nobody gave back")
			}
		}
		for range got {
			turns.give(greedy)
		}
		for _, other := range others {
			turns.give(other)
		}
		if turns.room.Taken() != 0 || len(turns.waiting) != 0 {
			t.Errorf("%d are taken and %d wait after all", turns.room.Taken(), len(turns.waiting))
		}
	})
}

// Who waits longest of one caller is next, and whoever leaves takes nothing.
func TestTurnsAreInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns[netip.Addr](2) // one for one caller
		source := arrived4
		if !turns.take(t.Context(), source) {
			t.Fatal("the first gets none")
		}
		served := make(chan string, 3)
		leaving, leave := context.WithCancel(t.Context())
		wait := func(ctx context.Context, name string) {
			go func() {
				if turns.take(ctx, source) {
					served <- name
				}
			}()
			synctest.Wait()
		}
		wait(leaving, "who leaves")
		wait(t.Context(), "second")
		wait(t.Context(), "third")
		leave()
		synctest.Wait()
		for _, want := range []string{"second", "third"} {
			turns.give(source)
			if name := <-served; name != want {
				t.Errorf("%s is next, want %s", name, want)
			}
		}
		turns.give(source)
		if turns.room.Taken() != 0 || len(turns.waiting) != 0 {
			t.Errorf("%d are taken and %d wait after all", turns.room.Taken(), len(turns.waiting))
		}
	})
}

// Questions to a provider out of the mesh, which have a connection each, are no
// more at a time than the node's bound, and one pod's leave some to the others.
// Who waits is asked about later.
func TestQuestionsOutsideAreShared(t *testing.T) {
	const most, callers = 16, 40
	asked, answer := make(chan struct{}, callers), make(chan struct{})
	provider := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-answer
	}))
	defer provider.Close()
	defer close(answer)
	at := netip.MustParseAddrPort(provider.Listener.Addr().String())
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer app.Close()
	s := startOneServerWith(t, app.Listener.Addr(), Config{Recorder: telemetry.New(telemetry.Options{}), MaxQuestionsOutside: most},
		asking(&model.Provider{Name: "slow", Protocol: model.ProviderHTTP, Host: at.Addr().String(), Port: at.Port(), Timeout: time.Hour}))
	client := s.client(t, 1)
	results := make(chan error, callers)
	for range callers {
		go func() {
			answer, err := client.Get("http://server/")
			if err == nil && answer.StatusCode != http.StatusOK {
				err = errors.New(answer.Status)
			}
			if err == nil {
				err = answer.Body.Close()
			}
			results <- err
		}()
	}
	waiting := func() int {
		s.outside.mu.Lock()
		defer s.outside.mu.Unlock()
		if line := s.outside.waiting["uid"]; line != nil {
			return line.Len()
		}
		return 0
	}
	until(t, "all have asked or wait", func() bool { return len(asked)+waiting() == callers })
	if n := len(asked); n != most/2 {
		t.Errorf("%d questions of one pod are under way, want %d", n, most/2)
	}
	atOnce, late := context.WithCancel(t.Context())
	late()
	if !s.outside.take(atOnce, "another") {
		t.Error("another pod is kept out")
	} else {
		s.outside.give("another")
	}
	for range callers {
		answer <- struct{}{}
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	until(t, "all is given back", func() bool { return s.outside.room.Taken() == 0 })
}
