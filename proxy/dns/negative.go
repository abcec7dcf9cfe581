package dns

import (
	"bytes"
	"encoding/binary"
	"strings"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	maxNegatives  = 4096
	maxNegative   = 1024             // bytes of one
	maxAbsentTime = 30 * time.Second // whatever its zone says
)

// negatives remembers which names there are not, for as long as their zones
// say (RFC 2308): resolvers with search domains ask for several of these
// before they ask for a name outside of the cluster.
type negatives struct {
	mu      sync.Mutex
	answers map[string]negative
}

type negative struct {
	answer []byte
	told   time.Time
	until  time.Time
}

func newNegatives() *negatives { return &negatives{answers: map[string]negative{}} }

// key is what an answer depends on; empty for a query whose answer is for it
// alone. Those that carry options, or want signatures, are.
func (n *negatives) key(q query) string {
	plain := q.operation == mdns.OpcodeQuery && binary.BigEndian.Uint32(q.raw[6:]) == 0
	rest := q.raw[q.end:]
	if binary.BigEndian.Uint16(q.raw[10:]) != 0 {
		// OPT: root, type 41, size, code, version, flags, no options
		plain = plain && len(rest) == 11 && rest[0] == 0 && binary.BigEndian.Uint16(rest[1:]) == mdns.TypeOPT &&
			binary.BigEndian.Uint32(rest[5:]) == 0 && binary.BigEndian.Uint16(rest[9:]) == 0
	}
	if !plain {
		return ""
	}
	kind := q.raw[q.end-4 : q.end]
	flags := []byte{q.raw[2] & 0x7d, q.raw[3] & 0x70} // all but what only answers have
	return strings.ToLower(string(q.raw[headerLength:q.end-4])) + string(kind) + string(flags) + string(rest)
}

// keep remembers an answer if it says that there is nothing, and for how long.
func (n *negatives) keep(q query, answer []byte, now time.Time) {
	c := code(answer)
	if len(answer) > maxNegative || c != mdns.RcodeNameError && (c != mdns.RcodeSuccess || binary.BigEndian.Uint16(answer[6:]) != 0) {
		return
	}
	key := n.key(q)
	if key == "" {
		return
	}
	m := new(mdns.Msg)
	if err := m.Unpack(answer); err != nil || m.Truncated || len(m.Answer) > 0 {
		return
	}
	life := time.Duration(0)
	for _, record := range m.Ns {
		if soa, ok := record.(*mdns.SOA); ok {
			life = min(time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second, maxAbsentTime)
		}
	}
	if life <= 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for old, kept := range n.answers { // at most a few: maps begin anywhere
		if len(n.answers) < maxNegatives && now.Before(kept.until) {
			break
		}
		delete(n.answers, old)
	}
	n.answers[key] = negative{answer: bytes.Clone(answer), told: now, until: now.Add(life)}
}

// find is the answer to a query of which it is known that there is nothing,
// with what is left of its time; nil if it is not.
func (n *negatives) find(q query, now time.Time) []byte {
	key := n.key(q)
	if key == "" {
		return nil
	}
	n.mu.Lock()
	kept, ok := n.answers[key]
	n.mu.Unlock()
	if !ok || !now.Before(kept.until) {
		return nil
	}
	m := new(mdns.Msg)
	if m.Unpack(kept.answer) != nil {
		return nil
	}
	age := uint32(now.Sub(kept.told) / time.Second)
	for _, record := range m.Ns {
		record.Header().Ttl -= min(age, record.Header().Ttl)
	}
	m.Id, m.Question[0].Name, m.Compress = q.id, q.name, true // as short as it came
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}
