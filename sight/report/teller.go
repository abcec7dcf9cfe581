package report

import (
	"crypto/sha256"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/api/sight"
)

// teller knows what one tacitd has been told.
type teller struct {
	from    *Reporter
	process uint64    // this one
	tacitd  uint64    // the process that is told
	taken   time.Time // when something was last
	// sent is the last summary until it is taken, and what to do then.
	sent     *sight.Summary
	told     func()
	sequence uint64

	counts map[flows.PairKey]flows.Counts
	minute int64                    // that live is about
	live   map[flows.PairKey]uint64 // open connections, as told in this minute
	listed int64                    // the minute in which certificates were
	uses   map[string]time.Time
	newest time.Time              // of the denials
	denied map[deniedKey]struct{} // those about as new
}

type deniedKey struct {
	id string
	at int64
}

func newTeller(r *Reporter, now time.Time) *teller {
	return &teller{from: r, process: rand.Uint64(), taken: now, counts: map[flows.PairKey]flows.Counts{}, uses: map[string]time.Time{}, denied: map[deniedKey]struct{}{}}
}

// begin starts to tell a process of tacitd. What was seen while nobody took it
// for long would only be told of the wrong minute.
func (t *teller) begin(tacitd uint64, now time.Time) {
	if t.tacitd != tacitd { // it is told again what is as it is
		t.tacitd, t.minute, t.listed = tacitd, 0, 0
		t.uses = map[string]time.Time{}
	}
	if now.Sub(t.taken) < forgetAfter {
		return
	}
	t.sent, t.told = nil, nil
	for _, p := range t.from.Flows.Pairs(t.from.Live()) {
		t.counts[p.PairKey] = p.Counts
	}
	t.newest = now.Add(-forgetAfter)
}

// summary is what is new, or once more what was not taken; done must be called
// once it was. more says that there is more than one holds.
func (t *teller) summary(now time.Time) (s *sight.Summary, more bool) {
	if t.sent != nil {
		return t.sent, true
	}
	t.sequence++
	t.sent, t.told, more = t.sum(now)
	return t.sent, more
}

// done is that the last summary was taken.
func (t *teller) done(now time.Time) {
	t.told()
	t.sent, t.told, t.taken = nil, nil, now
}

func (t *teller) sum(now time.Time) (s *sight.Summary, told func(), more bool) {
	s = &sight.Summary{Minute: now.Unix() / 60, Process: t.process, Sequence: t.sequence, Roots: t.roots()}
	if s.Minute != t.minute {
		t.minute, t.live = s.Minute, map[flows.PairKey]uint64{}
	}
	pairs, more := t.pairs(s)
	uses := t.used(s)
	denied, newest := t.deny(s, now)
	if t.listed != s.Minute {
		t.certificates(s)
	}
	return s, func() {
		for _, p := range pairs {
			t.counts[p.PairKey], t.live[p.PairKey] = p.Counts, p.Live
		}
		for policy, last := range uses {
			t.uses[policy] = last
		}
		t.listed, t.newest, t.denied = s.GetMinute(), newest, denied
	}, more
}

// pairs adds what was counted since the last time, and returns the counts.
func (t *teller) pairs(s *sight.Summary) (told []flows.Pair, more bool) {
	all := t.from.Flows.Pairs(t.from.Live())
	t.sweep(all)
	for _, p := range all {
		before := t.counts[p.PairKey]
		n := &sight.Pair{
			Inbound: p.Direction == "inbound", Source: party(p.Source), Destination: party(p.Destination), Security: p.Security, Why: p.Why,
			Connections: since(p.Connections, before.Connections), Live: int64(p.Live) - int64(t.live[p.PairKey]),
			Requests: since(p.Requests, before.Requests), Denied: since(p.Denied, before.Denied), Failed: since(p.Failed, before.Failed),
			Sent: since(p.Sent, before.Sent), Received: since(p.Received, before.Received),
		}
		for i, count := range p.Latency {
			if count = since(count, before.Latency[i]); count > 0 {
				for len(n.Latency) < i {
					n.Latency = append(n.Latency, 0)
				}
				n.Latency = append(n.Latency, count)
			}
		}
		if n.Connections == 0 && n.Live == 0 && n.Requests == 0 && n.Denied == 0 && n.Failed == 0 && n.Sent == 0 && n.Received == 0 {
			t.counts[p.PairKey] = p.Counts // some may have gone back
			continue
		}
		if len(s.GetPairs()) == maxPairs {
			return told, true
		}
		s.Pairs = append(s.Pairs, n)
		told = append(told, p)
	}
	return told, false
}

// sweep follows the table of pairs, which gives the counts of those that it
// forgets to the others: they were told already.
func (t *teller) sweep(all []flows.Pair) {
	there := make(map[flows.PairKey]struct{}, len(all))
	for _, p := range all {
		there[p.PairKey] = struct{}{}
	}
	for key, counts := range t.counts {
		if _, ok := there[key]; ok {
			continue
		}
		delete(t.counts, key)
		key.Source, key.Destination = flows.Other, flows.Other
		if _, ok := there[key]; ok {
			others := t.counts[key]
			counts.Live = 0
			others.Add(&counts)
			t.counts[key] = others
		}
	}
}

// since is by how much a count has grown. Bytes of live connections may be
// counted under another pair in the end.
func since(now, before uint64) uint64 {
	if now < before {
		return 0
	}
	return now - before
}

func party(p flows.Party) *sight.Party { return &sight.Party{Namespace: p.Namespace, Name: p.Name} }

func (t *teller) used(s *sight.Summary) map[string]time.Time {
	told := map[string]time.Time{}
	_, matched := t.from.Flows.Matched()
	for policy, last := range matched {
		if last = last.Truncate(time.Second); len(told) < maxUses && last.After(t.uses[policy]) {
			told[policy] = last
			s.Uses = append(s.Uses, &sight.Use{Policy: policy, Last: last.Unix()})
		}
	}
	return told
}

// late is by how much a denial may be remembered after another that came later.
const late = 5 * time.Second

// deny adds the last denials that were not told of.
func (t *teller) deny(s *sight.Summary, now time.Time) (denied map[deniedKey]struct{}, newest time.Time) {
	newest = t.newest
	if newest.IsZero() {
		newest = now.Add(-forgetAfter)
	}
	since := newest.Add(-late)
	all := t.from.Flows.Flows(&flows.Filter{Outcomes: []string{"denied"}}, since, 2*maxDenials)
	denied = map[deniedKey]struct{}{}
	for i := len(all) - 1; i >= 0; i-- {
		f := &all[i]
		key := deniedKey{f.ID, f.Time.UnixNano()}
		_, known := t.denied[key]
		if !known && len(s.GetDenials()) < maxDenials {
			s.Denials = append(s.Denials, denial(f))
		}
		denied[key] = struct{}{}
		if f.Time.After(newest) {
			newest = f.Time
		}
	}
	return denied, newest
}

// denial leaves out what callers say: hosts and paths may hold secrets.
func denial(f *flows.Flow) *sight.Denial {
	d := &sight.Denial{
		Id: f.ID, TimeMicros: f.Time.UnixMicro(), Inbound: f.Direction == "inbound",
		Source: owner(&f.Source), Destination: owner(&f.Destination), SourcePod: f.Source.Pod, DestinationPod: f.Destination.Pod,
		SourceAddress: addr(f.Source.Address), DestinationAddress: addrPort(f.Destination.Address), SourceIdentity: f.Source.Identity,
		Security: f.Security, Why: f.Why, Policy: f.Policy, Reason: f.Reason, Attribute: f.Attribute, Error: f.Error, Weight: uint32(f.Weight),
	}
	if f.HTTP != nil {
		d.Method, d.Status = f.HTTP.Method, uint32(f.HTTP.Status)
	}
	return d
}

func owner(p *flows.Peer) *sight.Party {
	if p.Owner != "" {
		return &sight.Party{Namespace: p.Namespace, Name: p.Owner}
	}
	return &sight.Party{Namespace: p.Namespace, Name: p.Pod}
}

func addr(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.Addr().String()
}

func addrPort(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func (t *teller) certificates(s *sight.Summary) {
	s.ListsCertificates = true
	all := t.from.Certificates()
	for _, c := range all[:min(len(all), maxHeldCerts)] {
		s.Certificates = append(s.Certificates, &sight.Certificate{
			Identity: c.Identity, NotAfter: seconds(c.NotAfter), Renewal: seconds(c.Renewal), Issuer: c.Issuer, Error: c.Error,
		})
	}
}

// roots are the different sets that are judged by. Too many are not told of, so
// that tacitd does not take a part for all of them.
func (t *teller) roots() (sets []*sight.Roots) {
	seen := map[string]bool{}
	for _, roots := range t.from.Roots() {
		set, all := &sight.Roots{}, ""
		for _, c := range roots {
			digest := sha256.Sum256(c.Raw)
			set.Digests, all = append(set.Digests, digest[:]), all+string(digest[:])
		}
		if seen[all] {
			continue
		}
		if len(sets) == maxRootSets {
			return nil
		}
		seen[all] = true
		sets = append(sets, set)
	}
	return sets
}

func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}
