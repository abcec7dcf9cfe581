package http

import (
	"cmp"
	"slices"
	"strings"
)

// kept are the options of Connection that concern both ends as they are: one
// connection of the client is one of the application.
var kept = []string{"close", "keep-alive", "te"}

// vital fields are not the hop's to remove, whatever Connection says: a
// request without them would be another one.
var vital = []string{
	"connection", "content-length", "transfer-encoding", "host", "trailer", "expect", "te",
	"authorization", "cookie", "content-type", "content-encoding", "x-forwarded-for",
}

// dropHop marks what RFC 9110 section 7.6.1 has every hop remove.
func (h *head1) dropHop(f *facts, r *Request) error {
	if !f.isConnection && f.upgrades == 0 {
		return nil
	}
	var named []string
	asked := false // for an upgrade
	for i := range h.lines {
		if !strings.EqualFold(h.lines[i].Name, "connection") {
			continue
		}
		if !isPlainConnection(h.lines[i].Value) {
			tokens(h.lines[i].Value, func(option string) bool {
				option = strings.ToLower(option)
				if option == "upgrade" {
					asked = true
				} else if !slices.Contains(kept, option) {
					named = append(named, option)
				}
				return true
			})
		}
	}
	for _, name := range named {
		if slices.Contains(vital, name) || !isToken(name) {
			return malformed(400, "Connection names %.64s, which is not the hop's", name)
		}
	}
	r.Upgrade = asked && f.websocket && f.upgrades == 1 && r.Method == "GET" && r.Minor == 1 && h.body.kind == bodyNone
	h.editHop(named, r.Upgrade)
	return nil
}

func isPlainConnection(value string) bool {
	return strings.EqualFold(value, "keep-alive") || strings.EqualFold(value, "close")
}

func (h *head1) editHop(named []string, upgrade bool) {
	for i := range h.lines {
		name := strings.ToLower(h.lines[i].Name)
		switch {
		case name == "connection" && !isPlainConnection(h.lines[i].Value):
			h.editConnection(i, upgrade)
		case name == "upgrade" && !upgrade, name == "http2-settings", slices.Contains(named, name):
			h.edits = append(h.edits, lineEdit{line: i})
		}
	}
	slices.SortFunc(h.edits, func(a, b lineEdit) int { return cmp.Compare(a.line, b.line) })
}

// editConnection leaves the options that stay, and the line as it is where
// they are all of them.
func (h *head1) editConnection(i int, upgrade bool) {
	var stay []string
	whole := true
	tokens(h.lines[i].Value, func(option string) bool {
		if slices.Contains(kept, strings.ToLower(option)) || upgrade && strings.EqualFold(option, "upgrade") {
			stay = append(stay, option)
		} else {
			whole = false
		}
		return true
	})
	if whole && len(stay) > 0 {
		return
	}
	text := ""
	if len(stay) > 0 {
		text = h.lines[i].Name + ": " + strings.Join(stay, ", ") + "\r\n"
	}
	h.edits = append(h.edits, lineEdit{line: i, text: text})
}

// plain reports whether the head is forwarded as it came.
func (h *head1) plain(e *Edits) bool { return len(h.edits) == 0 && e.empty() }

// rewrite appends the head as it is forwarded: every line that stays is the
// one that came.
func (h *head1) rewrite(to []byte, e *Edits) []byte {
	first := h.text[:h.first]
	if e.Target != "" {
		method, rest, _ := strings.Cut(first, " ")
		_, version, _ := strings.Cut(rest, " ")
		to = append(append(to, method...), ' ')
		to = append(append(to, e.Target...), ' ')
		to = append(to, version...)
	} else {
		to = append(to, first...)
	}
	if e.Fields != nil {
		for i := range e.Fields {
			to = appendField(to, &e.Fields[i])
		}
		return append(to, "\r\n"...)
	}
	next := 0
	for i := range h.lines {
		if next < len(h.edits) && h.edits[next].line == i {
			to = append(to, h.edits[next].text...)
			next++
			continue
		}
		to = append(to, h.text[h.lines[i].start:h.lines[i].end]...)
	}
	return append(to, "\r\n"...)
}

func appendField(to []byte, f *Field) []byte {
	to = append(append(to, f.Name...), ": "...)
	return append(append(to, f.Value...), "\r\n"...)
}

// valid reports whether the edits can stand in a head: what others have a
// decision add must not end a line.
func (e *Edits) valid() bool {
	for i := range e.Fields {
		if f := &e.Fields[i]; !isToken(f.Name) || !isValue(f.Value) || strings.Trim(f.Value, " \t") != f.Value {
			return false
		}
	}
	return all(e.Target, inTarget)
}
