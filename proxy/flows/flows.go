// Package flows remembers the last connections and requests that a proxy
// carried or denied, shows them as they happen to whoever taps it, and counts
// who talks to whom.
//
// What it costs is bounded, whatever the traffic: a ring of records of fixed
// size, a table of pairs with a limit, and a number of records a second beyond
// which only a sample is kept, each record saying how many it stands for. The
// counts of pairs are of everything.
//
// What does not belong here: metrics and logs (proxy/telemetry), and how flows
// are served (proxy/admin) and shown (cmd/tacit).
package flows

import (
	"net/netip"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// DefaultSize is how many flows a proxy remembers unless it is told otherwise:
// about 14 MB once it has seen as many.
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
	size    int
	started time.Time

	mu      sync.Mutex // guards what follows
	chunks  [][]record
	written uint64 // records in all; the newest is at (written-1) % size
	kept    [classes]sampler
	taps    map[*Tap]struct{}
	pairs   pairTable
	matched map[string]time.Time // policies, by when they last decided
}

// New makes a log of the last size connections and requests; nil for none.
func New(size int, started time.Time) *Log {
	if size <= 0 {
		return nil
	}
	return &Log{
		size: size, started: started, taps: map[*Tap]struct{}{}, pairs: newPairTable(maxPairs), matched: map[string]time.Time{},
	}
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
	weight := l.kept[classOf(e)].admit(e.Time)
	if weight == 0 {
		return
	}
	var opening record
	r := &opening
	if e.Kind != Opened {
		r = l.next()
	}
	r.fill(e, weight)
	for t := range l.taps {
		t.offer(r)
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

// chunk is how many records are made at a time: the ring takes memory only as
// it fills for the first time.
const chunk = 256

// next is the record that is written next, in the place of the oldest.
func (l *Log) next() *record {
	i := int(l.written % uint64(l.size))
	if i/chunk == len(l.chunks) {
		l.chunks = append(l.chunks, make([]record, min(chunk, l.size-i)))
	}
	l.written++
	return &l.chunks[i/chunk][i%chunk]
}

// Flows are the remembered ones since a time that the filter takes, oldest
// first; of more than limit the newest.
func (l *Log) Flows(f *Filter, since time.Time, limit int) []Flow {
	if l == nil {
		return nil
	}
	var newest []Flow
	for before := ^uint64(0); before > 0 && len(newest) < limit; {
		newest, before = l.read(newest, before, f, since, limit)
	}
	for i, j := 0, len(newest)-1; i < j; i, j = i+1, j-1 {
		newest[i], newest[j] = newest[j], newest[i]
	}
	return newest
}

// read adds what fits of one chunk before a record, newest first, so that the
// data path never waits for a whole ring to be read. It returns where to go on.
func (l *Log) read(out []Flow, before uint64, f *Filter, since time.Time, limit int) ([]Flow, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before = min(before, l.written)
	oldest := l.written - min(l.written, uint64(l.size))
	for range chunk {
		if before <= oldest || len(out) >= limit {
			return out, 0
		}
		before--
		i := int(before % uint64(l.size))
		r := &l.chunks[i/chunk][i%chunk]
		// Records stand in the order of their ends, but for what was told late.
		if r.time.Before(since.Add(-late)) {
			return out, 0
		}
		if !r.time.Before(since) && f.takes(r) {
			out = append(out, r.flow())
		}
	}
	return out, before
}

// late is by how much a connection may be told of after others that ended
// later.
const late = 5 * time.Second

// Matched are the policies that have decided about something since the log
// began, by when they last did.
func (l *Log) Matched() (since time.Time, policies map[string]time.Time) {
	policies = map[string]time.Time{}
	if l == nil {
		return time.Time{}, policies
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, at := range l.matched {
		policies[key] = at
	}
	return l.started, policies
}
