package http

import (
	"slices"
	"strings"

	"golang.org/x/net/http2/hpack"

	"github.com/tacit-mesh/tacit/proxy/policy"
)

func (e *ResponseEdits) empty() bool { return len(e.Set)+len(e.Add) == 0 }

func (e *ResponseEdits) replaces(name string) bool {
	return slices.ContainsFunc(e.Set, func(f Field) bool { return strings.EqualFold(f.Name, name) })
}

// rewriteResponse appends the head as it is passed on.
func (h *head1) rewriteResponse(to []byte, e *ResponseEdits) []byte {
	var fields []Field
	for i := range h.lines {
		if !e.replaces(h.lines[i].Name) {
			fields = append(fields, h.lines[i].Field)
		}
	}
	return h.rewrite(to, &Edits{Fields: slices.Concat(fields, e.Set, e.Add)})
}

// apply changes a response's header of HTTP/2.
func (e *ResponseEdits) apply(fields []hpack.HeaderField) []hpack.HeaderField {
	if e.empty() {
		return fields
	}
	out := slices.DeleteFunc(slices.Clone(fields), func(f hpack.HeaderField) bool { return e.replaces(f.Name) })
	for _, f := range slices.Concat(e.Set, e.Add) {
		out = append(out, hpack.HeaderField{Name: strings.ToLower(f.Name), Value: f.Value})
	}
	return out
}

// valid reports whether what others have a decision change can stand in heads.
func (d *Decision) valid() bool {
	response := Edits{Fields: slices.Concat(d.Response.Set, d.Response.Add)}
	return d.Edits.valid() && response.valid()
}

// isOwn reports whether a trailer has a name that only the decision may say.
func isOwn(own []string, name string) bool {
	return slices.ContainsFunc(own, func(o string) bool { return policy.SameName(o, name) })
}
