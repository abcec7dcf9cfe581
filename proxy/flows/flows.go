// Package flows remembers the last connections and requests that a proxy
// carried or denied, shows them as they happen to whoever taps it, and counts
// who talks to whom.
//
// What it costs is bounded, whatever the traffic: rings of records of fixed
// size, a table of pairs with a limit, and a number of records a second beyond
// which only a sample is kept, each record saying how many it stands for. The
// counts of pairs are of everything. Denials and failures have a ring of their
// own, so that ordinary traffic pushes none of them out.
//
// What does not belong here: metrics and logs (proxy/telemetry), and how flows
// are served (proxy/admin) and shown (cmd/tacit).
package flows

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// DefaultSize is how many flows a proxy remembers unless it is told otherwise:
// about 5 MB once it has seen as many.
const DefaultSize = 16384

// perSecond is how many records of a class are kept in a second. Denials and
// failures are a class of their own, so that no flood of other traffic hides
// them, and openings, which only taps see, another.
const perSecond = 500

// Kind is what happened.
type Kind uint8

// The kinds. An opening is for taps alone: what is remembered is the end.
const (
	Opened    Kind = iota // a connection is about to carry bytes
	Ended                 // a connection has ended or was denied
	Requested             // a request on a connection was answered
	Live                  // a connection is open as it is asked for
)

func (k Kind) String() string { return [...]string{"opened", "ended", "request", "live"}[k&3] }

// Event is one thing that happened, as its owner tells it: the log keeps
// nothing of it but what it copies. Strings that callers of the mesh chose are
// Method, Host, Path and what Err says.
type Event struct {
	Kind                Kind
	ID                  string
	Inbound             bool
	Security, Outcome   string // as in the log: "mtls", "denied" and such
	Began, Time         time.Time
	Source, Destination End
	Service             string // hostname, if one was called

	Policy, Reason, Attribute, DryRun string
	// Matched says that Policy decided, rather than came closest.
	Matched bool
	Err     error

	Protocol           string // of a request: "http" or "grpc"
	Method, Host, Path string
	Status             int // 0: none
	Sent, Received     int64
	Added              time.Duration // the latency that the proxy added
}

// End is one end of a connection: verified facts.
type End struct {
	Addr            netip.AddrPort
	Workload        *model.Workload // nil if the control plane knows none there
	Name, Namespace string          // where there is no Workload
	Identity        model.Identity
}

// Log remembers. A nil one remembers nothing. Its methods may be called from any goroutine, and those
// that tell it something never wait for whoever reads.
type Log struct {
	started time.Time
	tapping atomic.Int32 // how many taps there are

	mu      sync.Mutex // guards what follows
	rings   [classes]ring
	kept    [classes]sampler
	taps    map[*Tap]struct{}
	pairs   pairTable
	matched map[string]time.Time // policies, by when they last decided
}

// New makes a log of the last size connections and requests, a quarter of it for
// those that were denied or failed; nil for none.
func New(size int, started time.Time) *Log {
	if size <= 0 {
		return nil
	}
	l := &Log{started: started, taps: map[*Tap]struct{}{}, pairs: newPairTable(maxPairs), matched: map[string]time.Time{}}
	l.rings[trouble].size = max(size/4, 1)
	l.rings[ordinary].size = max(size-l.rings[trouble].size, 1)
	l.rings[opening].size = 1 // the last one that taps got
	return l
}

// Add tells what happened.
func (l *Log) Add(e *Event) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Kind != Opened {
		l.pairs.count(e)
		l.match(e)
	} else if len(l.taps) == 0 {
		return
	}
	class := classOf(e)
	weight, before := l.kept[class].admit(e.Time)
	l.leaveToLast(class, before)
	if weight == 0 {
		return
	}
	r := l.rings[class].next()
	r.fill(e, weight)
	for t := range l.taps {
		t.offer(r)
	}
}

// leaveToLast has the newest record of a class stand for more. Taps had it
// already, and do not get these.
func (l *Log) leaveToLast(class, skipped int) {
	last := l.rings[class].last()
	if skipped == 0 || last == nil {
		return
	}
	last.weight += skipped
	for t := range l.taps {
		t.lose(last, skipped, &t.lost.Sampled)
	}
}

// maxMatched bounds how many policies are known to have decided something.
const maxMatched = 4096

func (l *Log) match(e *Event) {
	if !e.Matched || e.Policy == "" {
		return
	}
	if _, known := l.matched[e.Policy]; known || len(l.matched) < maxMatched {
		l.matched[e.Policy] = e.Time
	}
}

// Flows are the remembered ones since a time that the filter takes, oldest
// first; of more than limit the newest.
func (l *Log) Flows(f *Filter, since time.Time, limit int) []Flow {
	if l == nil {
		return nil
	}
	var all []Flow
	for class := range opening {
		all = append(all, l.newest(class, f, since, limit)...)
	}
	slices.SortStableFunc(all, func(a, b Flow) int { return a.Time.Compare(b.Time) })
	return all[max(0, len(all)-limit):]
}

// newest are the flows of a class, oldest first. Those who add flows wait for no
// more than a chunk to be looked at, and for nothing to be allocated.
func (l *Log) newest(class int, f *Filter, since time.Time, limit int) []Flow {
	var flows []Flow
	records := make([]record, chunk)
	for before := ^uint64(0); before > 0 && len(flows) < limit; {
		l.mu.Lock()
		n, next := l.rings[class].read(records, before, f, since)
		l.mu.Unlock()
		for i := range records[:min(n, limit-len(flows))] {
			flows = append(flows, records[i].flow())
		}
		before = next
	}
	slices.Reverse(flows)
	return flows
}

// Matched are the policies that have decided about something since the log
// began, by when they last did.
func (l *Log) Matched() (since time.Time, policies map[string]time.Time) {
	if l == nil {
		return time.Time{}, map[string]time.Time{}
	}
	l.mu.Lock()
	n := len(l.matched)
	l.mu.Unlock()
	policies = make(map[string]time.Time, n+room)
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, at := range l.matched {
		policies[key] = at
	}
	return l.started, policies
}

// room is for what comes to a table between two looks at it.
const room = 64
