package dns

import (
	"encoding/binary"
	"errors"
	"strings"

	mdns "github.com/miekg/dns"
)

const (
	headerLength = 12
	// ttl is how long what the mesh says may be remembered, in seconds, that
	// there is nothing included.
	ttl = 30
	// maxUDP bounds an answer of ours to a client that has room for it; those
	// without EDNS have minUDP.
	maxUDP = 4096
	minUDP = 512
	// maxAdditional is how many further records a query of ours may bring;
	// OPT and a signature are all that have a meaning.
	maxAdditional = 4
)

// query is a message that asks one question.
type query struct {
	raw  []byte
	id   uint16
	name string // as it was written, with the last dot
	kind uint16
	// class and operation are INET and QUERY in all that we may answer.
	class     uint16
	operation int
	end       int // of the question in raw
}

// errIgnored is a message that must not be answered, lest two servers talk to
// each other for ever.
var errIgnored = errors.New("no query")

// errFormat is a query that nobody could understand.
var errFormat = errors.New("malformed query")

// parse reads what a message asks, and nothing else of it. The query has raw.
func parse(raw []byte) (query, error) {
	if len(raw) < headerLength || raw[2]&0x80 != 0 {
		return query{}, errIgnored
	}
	q := query{raw: raw, id: binary.BigEndian.Uint16(raw), operation: int(raw[2]>>3) & 0xf}
	if binary.BigEndian.Uint16(raw[4:]) != 1 {
		return q, errFormat
	}
	// A question that points elsewhere would not be the one that is compared
	// with the answer's.
	end, ok := skipName(raw, headerLength)
	if !ok || len(raw) < end+4 {
		return q, errFormat
	}
	name, _, err := mdns.UnpackDomainName(raw[:end], headerLength)
	if err != nil {
		return q, errFormat
	}
	q.name, q.kind, q.class, q.end = name, binary.BigEndian.Uint16(raw[end:]), binary.BigEndian.Uint16(raw[end+2:]), end+4
	return q, nil
}

// skipName finds the end of a name that is written out.
func skipName(raw []byte, at int) (end int, ok bool) {
	for at < len(raw) && raw[at]&0xc0 == 0 {
		length := int(raw[at])
		at += 1 + length
		if length == 0 {
			return at, true
		}
	}
	return 0, false
}

// question is the part of the message that an answer has to repeat.
func (q query) question() []byte { return q.raw[headerLength:q.end] }

// aboutAddresses reports whether the mesh may know the answer.
func (q query) aboutAddresses() bool {
	return q.operation == mdns.OpcodeQuery && q.class == mdns.ClassINET && (q.kind == mdns.TypeA || q.kind == mdns.TypeAAAA)
}

// kindLabel is the type that is asked for, as metrics have it: a pod can ask
// for any number of types that nobody knows.
func (q query) kindLabel() string {
	switch q.kind {
	case mdns.TypeA, mdns.TypeAAAA, mdns.TypeANY, mdns.TypeCNAME, mdns.TypeDNSKEY, mdns.TypeDS, mdns.TypeHTTPS, mdns.TypeMX,
		mdns.TypeNS, mdns.TypePTR, mdns.TypeSOA, mdns.TypeSRV, mdns.TypeSVCB, mdns.TypeTXT:
		return strings.ToLower(mdns.TypeToString[q.kind])
	}
	return "other"
}

// failure is an answer without anything but a code. It fits into any message,
// and is no longer than the query.
func failure(q query, code int) []byte {
	out := make([]byte, headerLength, max(headerLength, q.end))
	binary.BigEndian.PutUint16(out, q.id)
	if len(q.raw) >= headerLength {
		out[2] = 0x80 | q.raw[2]&0x79 // operation, and that recursion is desired
		out[3] = 0x80 | q.raw[3]&0x10 | byte(code)&0xf
	}
	if q.end > 0 {
		binary.BigEndian.PutUint16(out[4:], 1)
		out = append(out, q.question()...)
	}
	return out
}

// answer is the message that tells what the mesh knows, of at most so many
// bytes as the client has room for by UDP, and any number by TCP.
func answer(q query, f found, tcp bool) []byte {
	edns, code := q.edns()
	if code != mdns.RcodeSuccess && edns == nil {
		return failure(q, code)
	}
	m := new(mdns.Msg)
	m.Id, m.Response, m.Authoritative, m.RecursionAvailable = q.id, true, code == mdns.RcodeSuccess, true
	m.RecursionDesired, m.CheckingDisabled = q.raw[2]&1 != 0, q.raw[3]&0x10 != 0
	m.Compress = true
	m.Question = []mdns.Question{{Name: q.name, Qtype: q.kind, Qclass: q.class}}
	size := minUDP
	if edns != nil {
		opt := &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT}}
		opt.SetUDPSize(maxUDP)
		if edns.Do() {
			opt.SetDo()
		}
		m.Extra = []mdns.RR{opt}
		size = min(max(int(edns.UDPSize()), minUDP), maxUDP)
	}
	if tcp {
		size = mdns.MaxMsgSize
	}
	if code == mdns.RcodeSuccess {
		addRecords(m, q, f, size)
	} else {
		m.Rcode = code // more than four bits of it are in OPT
	}
	m.Truncate(size)
	out, err := m.Pack()
	if err != nil {
		return failure(q, mdns.RcodeServerFailure)
	}
	return out
}

// edns is the client's OPT record, nil if it has none. A code other than
// success is what to answer instead.
func (q query) edns() (*mdns.OPT, int) {
	additional := binary.BigEndian.Uint16(q.raw[10:])
	if binary.BigEndian.Uint32(q.raw[6:]) != 0 || additional > maxAdditional {
		return nil, mdns.RcodeFormatError
	}
	var edns *mdns.OPT
	for at := q.end; additional > 0; additional-- {
		record, next, err := mdns.UnpackRR(q.raw, at)
		if err != nil || at == len(q.raw) {
			return nil, mdns.RcodeFormatError
		}
		if opt, ok := record.(*mdns.OPT); ok {
			if edns != nil {
				return nil, mdns.RcodeFormatError // RFC 6891, 6.1.1
			}
			edns = opt
		}
		at = next
	}
	if edns != nil && edns.Version() != 0 {
		return edns, mdns.RcodeBadVers
	}
	return edns, mdns.RcodeSuccess
}

// addressLength is how long a record of an address is at least.
const addressLength = 16

func addRecords(m *mdns.Msg, q query, f found, size int) {
	owner := q.name
	header := func(kind uint16) mdns.RR_Header {
		return mdns.RR_Header{Name: owner, Rrtype: kind, Class: mdns.ClassINET, Ttl: ttl}
	}
	if f.alias != "" && len(f.addresses) > 0 {
		target := mdns.Fqdn(f.alias)
		m.Answer = append(m.Answer, &mdns.CNAME{Hdr: header(mdns.TypeCNAME), Target: target})
		owner = target
	}
	// One more than can fit, so that it shows that there are more.
	for _, a := range f.addresses[:min(len(f.addresses), size/addressLength+1)] {
		if a.Is4() {
			m.Answer = append(m.Answer, &mdns.A{Hdr: header(mdns.TypeA), A: a.AsSlice()})
		} else {
			m.Answer = append(m.Answer, &mdns.AAAA{Hdr: header(mdns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	if len(f.addresses) == 0 { // says for how long to remember that (RFC 2308)
		m.Ns = append(m.Ns, &mdns.SOA{
			Hdr: header(mdns.TypeSOA), Ns: owner, Mbox: ".", Serial: 1,
			Refresh: ttl, Retry: ttl, Expire: ttl, Minttl: ttl,
		})
	}
}
