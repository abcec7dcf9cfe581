package hour

import (
	"encoding/binary"

	"github.com/tacit-mesh/tacit/proxy/flows"
)

// packed is a minute that is over: its counts one after the other as varints,
// most of which are zero or small.
type packed struct {
	at     int64
	keys   []key
	counts []byte
}

// scalars are the counts of a pair but for its latency.
func scalars(c *flows.Counts) [7]*uint64 {
	return [...]*uint64{&c.Connections, &c.Live, &c.Requests, &c.Denied, &c.Failed, &c.Sent, &c.Received}
}

func (m *minute) pack() packed {
	p := packed{at: m.at, keys: make([]key, 0, len(m.pairs))}
	for k, c := range m.pairs {
		p.keys = append(p.keys, k)
		for _, n := range scalars(c) {
			p.counts = binary.AppendUvarint(p.counts, *n)
		}
		used := 0
		for i, n := range c.Latency {
			if n > 0 {
				used = i + 1
			}
		}
		p.counts = append(p.counts, byte(used))
		for _, n := range c.Latency[:used] {
			p.counts = binary.AppendUvarint(p.counts, n)
		}
	}
	p.counts = append([]byte(nil), p.counts...) // without the room to grow
	return p
}

// each unpacks pair by pair; the counts are valid until it returns.
func (p packed) each(take func(key, *flows.Counts)) {
	rest := p.counts
	next := func() uint64 {
		n, size := binary.Uvarint(rest)
		rest = rest[size:]
		return n
	}
	for _, k := range p.keys {
		var c flows.Counts
		for _, n := range scalars(&c) {
			*n = next()
		}
		used := rest[0]
		rest = rest[1:]
		for i := range used {
			c.Latency[i] = next()
		}
		take(k, &c)
	}
}
