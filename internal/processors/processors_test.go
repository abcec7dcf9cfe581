package processors

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// An idle program has one processor, and all as soon as a goroutine is busy.
func TestFollow(t *testing.T) {
	t.Setenv("GOMAXPROCS", "") // has it be put back
	_ = os.Unsetenv("GOMAXPROCS")
	runtime.SetDefaultGOMAXPROCS()
	all := runtime.GOMAXPROCS(0)
	if all == 1 {
		t.Skip("there is one CPU")
	}
	t.Cleanup(runtime.SetDefaultGOMAXPROCS)
	synctest.Test(t, func(t *testing.T) { // whose time passes at once
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- Follow(ctx) }()
		<-time.After(10 * calmRounds * every)
		if n := runtime.GOMAXPROCS(0); n != 1 {
			t.Errorf("an idle program has %d processors", n)
		}
		Busy()
		synctest.Wait()
		if n := runtime.GOMAXPROCS(0); n != all {
			t.Errorf("%d processors beside a busy goroutine, of %d", n, all)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
