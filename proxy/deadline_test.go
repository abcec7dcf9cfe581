package proxy

import (
	"testing"
	"testing/synctest"
	"time"
)

// outage is an agent that is away for a time.
type outage struct {
	from, to time.Time
}

func (o outage) absence() time.Duration {
	now := time.Now()
	if now.After(o.to) {
		now = o.to
	}
	return max(0, now.Sub(o.from))
}

func TestDeadlineLeavesOutTheAgentsAbsence(t *testing.T) {
	const second = time.Second
	for name, tt := range map[string]struct {
		away, back time.Duration // of the agent
		peer, done time.Duration // from when to when the peer is waited for
		want       time.Duration // until the end
	}{
		"an agent":                          {want: 10 * second},
		"none for a while":                  {away: 3 * second, back: 38 * second, want: 45 * second},
		"none from before on":               {away: -time.Hour, back: 12 * second, want: 22 * second},
		"none any more":                     {away: 4 * second, back: time.Hour, want: 70 * second},
		"a peer that refuses":               {peer: 2 * second, done: 30 * second, want: 38 * second},
		"a peer that says nothing":          {peer: 2 * second, done: time.Hour, want: 70 * second},
		"no agent on either side":           {away: 5 * second, back: 40 * second, peer: 1 * second, done: 35 * second, want: 49 * second},
		"neither agent comes back":          {away: 5 * second, back: time.Hour, peer: 1 * second, done: 35 * second, want: 70 * second},
		"an agent that comes too late":      {away: 0, back: 80 * second, want: 70 * second},
		"a peer at the very last moment":    {peer: 10*second - 1, done: 20 * second, want: 20*second + 1},
		"an absence that ended before that": {away: -20 * second, back: -10 * second, want: 10 * second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				agent := outage{began.Add(tt.away), began.Add(tt.back)}
				ended := make(chan time.Duration, 1)
				d := newDeadline(agent.absence, 10*second, func() { ended <- time.Since(began) }, nil)
				if tt.done > 0 {
					time.AfterFunc(tt.peer, func() { d.wait(true) })
					time.AfterFunc(tt.done, func() { d.wait(false) })
				}
				if got := <-ended; got != tt.want {
					t.Errorf("ended after %v, want %v", got, tt.want)
				}
				d.wait(false) // changes nothing any more
			})
		})
	}
}

func TestStoppedDeadlineEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeadline(func() time.Duration { return 0 }, time.Second, func() { t.Error("ended") }, nil)
		d.stop()
		d.wait(true)
		d.check() // which was under way
		<-time.After(time.Hour)
	})
}
