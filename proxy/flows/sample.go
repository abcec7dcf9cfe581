package flows

import "time"

// The classes of events, each with its own allowance.
const (
	ordinary = iota
	trouble
	opening // for taps alone
	classes
)

func classOf(e *Event) int {
	switch {
	case e.Kind == Opened:
		return opening
	case e.Outcome == "ok" || e.Outcome == "reset":
		return ordinary
	}
	return trouble
}

// sampler keeps at most perSecond events of each second. Where the second
// before had more, it keeps every n-th from the start, so that what is kept is
// spread over the whole second.
type sampler struct {
	second     int64
	seen, kept int // in this second
	stride     int // every so many are kept
	skipped    int // since the last that was kept
}

// admit returns how many events this one stands for, itself included; 0 if it
// is not kept. Those before it that nothing stands for yet are left to the last
// that was kept, if this one comes much later and has nothing to do with them;
// taps had that already, and have lost them. The sum of all weights, and of what a
// tap has lost, is that of all events, but for the last few that were not kept yet.
func (s *sampler) admit(now time.Time) (weight, before int) {
	if second := now.Unix(); second != s.second && second != s.second-1 { // events may come a little out of order
		s.stride = 1
		if second == s.second+1 {
			s.stride = max(1, (s.seen+perSecond-1)/perSecond)
		} else {
			before, s.skipped = s.skipped, 0
		}
		s.second, s.seen, s.kept = second, 0, 0
	}
	s.seen++
	if s.kept >= perSecond || s.skipped+1 < s.stride {
		s.skipped++
		return 0, before
	}
	s.kept++
	weight, s.skipped = s.skipped+1, 0
	return weight, before
}

// rest is how many nothing stands for yet; from now on they are left to the last
// that was kept.
func (s *sampler) rest() (skipped int) {
	skipped, s.skipped = s.skipped, 0
	return skipped
}
