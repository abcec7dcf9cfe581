package caclient

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Many that began together are renewed again and again, about as many in each
// second: by chance alone it would be more than 40 in some.
func TestRenewalsFallApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, half, most = 500, 30 * time.Second, 32
		var p plan
		var mu sync.Mutex
		end := time.Now().Add(10 * time.Minute)
		renewals := map[int64]int{} // by the second
		for range n {
			go func() {
				for early := spreadTogether; time.Now().Before(end); early = spread {
					due := p.enter(time.Now().Add(half), time.Duration(early*float64(half)))
					<-time.After(time.Until(due))
					p.leave(due)
					mu.Lock()
					renewals[due.Unix()]++
					mu.Unlock()
				}
			}()
		}
		<-time.After(11 * time.Minute)
		synctest.Wait()
		for second, many := range renewals {
			if many > most {
				t.Errorf("%d renewals in second %d, want up to %d", many, second-end.Unix()+600, most)
			}
		}
		if len(p.due) > 0 {
			t.Errorf("%d seconds are still planned", len(p.due))
		}
	})
}
