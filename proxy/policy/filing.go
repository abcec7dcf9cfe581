package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// filed are the attributes by whose values rules are found.
var filed = [...]attribute{
	principals, namespaces, serviceAccounts, sourceIPs, destinationPorts, destinationIPs, methods, paths, hosts, requestPrincipals,
}

// key is a value of an attribute, or the beginning or end of one. Addresses
// are the text of their bytes, in the length of IPv6, and so are ports.
type key struct {
	attribute attribute
	kind      model.StringMatchKind // exact, prefix or suffix
	text      string
}

// filing finds rules by values.
type filing struct {
	always []uint32 // rules that no value leads to
	byKey  map[key][]uint32
	drawer [lastAttribute + 1]drawer
}

// drawer is what is filed by one attribute.
type drawer struct {
	all                []uint32
	exact              bool
	prefixes, suffixes []int // the lengths that there are; of addresses in bits
}

// file puts a rule under its keys, or, unless it has any, with those that are
// always to be judged.
func (f *filing) file(n uint32, keys []key, ok bool) {
	if !ok {
		f.always = append(f.always, n)
		return
	}
	if f.byKey == nil {
		f.byKey = map[key][]uint32{}
	}
	for _, k := range keys {
		d := &f.drawer[k.attribute]
		f.byKey[k] = append(f.byKey[k], n)
		if len(d.all) == 0 || d.all[len(d.all)-1] != n {
			d.all = append(d.all, n)
		}
		length := len(k.text)
		if addressed(k.attribute) {
			length = int(k.text[len(k.text)-1])
		}
		switch {
		case k.kind == model.MatchExact:
			d.exact = true
		case k.kind == model.MatchPrefix && !slices.Contains(d.prefixes, length):
			d.prefixes = append(d.prefixes, length)
		case k.kind == model.MatchSuffix && !slices.Contains(d.suffixes, length):
			d.suffixes = append(d.suffixes, length)
		}
	}
}

func addressed(a attribute) bool { return a == sourceIPs || a == destinationIPs }

// keys are those of an attribute of a match; none if it has none that rules
// are found by.
func keys(m *model.Match, a attribute) []key {
	switch a {
	case principals:
		return textKeys(a, m.Principals)
	case namespaces:
		return textKeys(a, m.Namespaces)
	case serviceAccounts:
		var out []key
		for _, v := range m.ServiceAccounts {
			out = append(out, key{a, model.MatchExact, v.Namespace + "/" + v.Name})
		}
		return out
	case sourceIPs:
		return prefixKeys(a, m.SourceIPs)
	case destinationIPs:
		return prefixKeys(a, m.DestinationIPs)
	case destinationPorts:
		var out []key
		for _, p := range m.DestinationPorts {
			out = append(out, key{a, model.MatchExact, string(binary.BigEndian.AppendUint16(nil, p))})
		}
		return out
	}
	if m.HTTP == nil {
		return nil
	}
	switch a {
	case methods:
		return textKeys(a, m.HTTP.Methods)
	case paths:
		return textKeys(a, m.HTTP.Paths)
	case hosts:
		found := textKeys(a, m.HTTP.Hosts)
		for i := range found {
			found[i].text = string(appendLower(nil, found[i].text))
		}
		return found
	case requestPrincipals:
		return textKeys(a, m.HTTP.RequestPrincipals)
	}
	return nil
}

func textKeys(a attribute, values []model.StringMatch) []key {
	var out []key
	for _, v := range values {
		switch v.Kind {
		case model.MatchExact, model.MatchPrefix, model.MatchSuffix:
			out = append(out, key{a, v.Kind, v.Value})
		case model.MatchTemplate:
			literal, _, _ := strings.Cut(v.Value, "{")
			out = append(out, key{a, model.MatchPrefix, literal})
		default:
			out = append(out, key{a, model.MatchPrefix, ""})
		}
	}
	return out
}

func prefixKeys(a attribute, values []netip.Prefix) []key {
	var out []key
	for _, p := range values {
		length := p.Bits()
		if p.Addr().Is4() {
			length += 96
		}
		out = append(out, key{a, model.MatchPrefix, string(appendPrefix(nil, p.Addr(), length))})
	}
	return out
}

// appendPrefix appends the first bits of an address, and how many they are.
func appendPrefix(to []byte, a netip.Addr, length int) []byte {
	p, err := netip.AddrFrom16(a.As16()).Prefix(length)
	if err != nil {
		return append(to, 0)
	}
	bytes := p.Addr().As16()
	return append(append(to, bytes[:]...), byte(length))
}

func appendLower(to []byte, s string) []byte {
	for i := range len(s) {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		to = append(to, c)
	}
	return to
}

// find marks the rules that the facts of an evaluation lead to.
func (f *filing) find(m marks, e *evaluation) {
	m.add(f.always)
	for _, a := range filed {
		if d := &f.drawer[a]; len(d.all) > 0 {
			f.look(m, e, a, d)
		}
	}
}

// longest is the length of values that are looked for without memory from the
// heap.
const longest = 512

func (f *filing) look(m marks, e *evaluation, a attribute, d *drawer) {
	var space [longest]byte
	text := space[:0]
	id := &e.request.Identity
	switch a {
	case principals, namespaces, serviceAccounts:
		if id.IsZero() {
			return // to whom no value of these fits
		}
		switch a {
		case principals:
			for _, part := range e.principal {
				text = append(text, part...)
			}
		case namespaces:
			text = append(text, id.Namespace...)
		default:
			text = append(append(append(text, id.Namespace...), '/'), id.ServiceAccount...)
		}
	case sourceIPs:
		f.lookAddress(m, e.source, a, d)
		return
	case destinationIPs:
		f.lookAddress(m, e.destination, a, d)
		return
	case destinationPorts:
		text = binary.BigEndian.AppendUint16(text, e.request.Destination.Port())
	default:
		f.lookRequest(m, e, a, d, text)
		return
	}
	f.lookText(m, a, d, text)
}

func (f *filing) lookRequest(m marks, e *evaluation, a attribute, d *drawer, text []byte) {
	r := e.request.HTTP
	if r == nil || e.anyRequest {
		m.add(d.all)
		return
	}
	switch a {
	case methods:
		text = append(text, r.Method...)
	case paths:
		text = append(text, r.Path...)
	case hosts:
		text = appendLower(text, r.Host)
		f.lookText(m, a, d, text)
		text = appendLower(text[:0], bareHost(r.Host))
	case requestPrincipals:
		issuer, subject := r.Claims.text("iss"), r.Claims.text("sub")
		if issuer == "" || subject == "" {
			return
		}
		text = append(append(append(text, issuer...), '/'), subject...)
	}
	f.lookText(m, a, d, text)
}

func (f *filing) lookText(m marks, a attribute, d *drawer, text []byte) {
	if d.exact {
		m.add(f.byKey[key{a, model.MatchExact, string(text)}])
	}
	for _, n := range d.prefixes {
		if n <= len(text) {
			m.add(f.byKey[key{a, model.MatchPrefix, string(text[:n])}])
		}
	}
	for _, n := range d.suffixes {
		if n <= len(text) {
			m.add(f.byKey[key{a, model.MatchSuffix, string(text[len(text)-n:])}])
		}
	}
}

func (f *filing) lookAddress(m marks, address netip.Addr, a attribute, d *drawer) {
	if !address.IsValid() {
		m.add(d.all)
		return
	}
	var space [17]byte
	for _, n := range d.prefixes {
		m.add(f.byKey[key{a, model.MatchPrefix, string(appendPrefix(space[:0], address, n))}])
	}
}
