// Package h2 has what every speaker of HTTP/2 here needs beside
// golang.org/x/net/http2: header blocks that are assembled within bounds, and
// allowances for frames that cost this end more than they cost the peer.
//
// What does not belong here: connections and streams, which the tunnel
// (proxy/hbone) and the HTTP path (proxy/http) have each in its own way.
package h2

import "time"

// Allowance bounds frames that cost this end more than they cost the peer. It
// looks at the clock only when it seems to be used up.
type Allowance struct {
	left, burst int
	perSecond   int
	since       time.Time
}

// NewAllowance allows burst at once, and as many per second in the long run.
func NewAllowance(burst, perSecond int) Allowance {
	return Allowance{left: burst, burst: burst, perSecond: perSecond, since: time.Now()}
}

// Spend reports whether there was one left.
func (a *Allowance) Spend() bool {
	if a.left == 0 {
		now := time.Now()
		a.left = min(a.burst, int(now.Sub(a.since).Seconds()*float64(a.perSecond)))
		a.since = now
	}
	if a.left == 0 {
		return false
	}
	a.left--
	return true
}

// Earn adds one for something useful that calls for such a frame.
func (a *Allowance) Earn() { a.left = min(a.left+1, a.burst) }
