package http

import (
	"net/netip"
	"strings"
)

// Request is what a decision looks at: what the application will be given,
// but for the Edits of the decision itself. Its strings are not changed later.
type Request struct {
	Protocol Protocol // HTTP1 or HTTP2
	// Minor is the minor version of HTTP/1.
	Minor  int
	Method string
	// Target is the path and query, as they came; "*" of OPTIONS; the
	// authority of CONNECT.
	Target string
	Host   string // or authority; may be empty
	Fields []Field
	// Upgrade is set where the connection may become a WebSocket.
	Upgrade bool
}

// Path is the target without its query.
func (r *Request) Path() string {
	path, _, _ := strings.Cut(r.Target, "?")
	return path
}

// Query is what follows the path, without the question mark.
func (r *Request) Query() string {
	_, query, _ := strings.Cut(r.Target, "?")
	return query
}

// Header is the value of a field, "" where there is none. Several of one name
// are one list (RFC 9110 section 5.3).
func (r *Request) Header(name string) (value string, present bool) {
	separator := ","
	if strings.EqualFold(name, "cookie") {
		separator = "; "
	}
	for i := range r.Fields {
		if !strings.EqualFold(r.Fields[i].Name, name) {
			continue
		}
		if present {
			value += separator + r.Fields[i].Value
		} else {
			value, present = r.Fields[i].Value, true
		}
	}
	return value, present
}

// GRPC reports whether the caller understands a gRPC status.
func (r *Request) GRPC() bool {
	kind, _ := r.Header("content-type")
	return r.Protocol == HTTP2 && (kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+") || strings.HasPrefix(kind, "application/grpc;"))
}

// head1 is a head of HTTP/1 that was parsed, and how its message is framed.
type head1 struct {
	text  string
	first int // where the field lines begin
	lines []line
	body  body
	edits []lineEdit
}

// lineEdit replaces a line, or drops it where text is empty.
type lineEdit struct {
	line int
	text string
}

// parseRequest reads a head that ends with an empty line.
//
// It refuses what parsers understand differently, so that nothing is forwarded
// which an application could take for something else: a length twice or beside
// Transfer-Encoding, codings but chunked, continued lines, space around names,
// Host twice or in disagreement with the target, a fragment. It marks for
// removal what concerns the hop alone: fields that Connection names, and any
// Upgrade but to a WebSocket, since a tunnel of HTTP/2 would go on undecided.
func (h *head1) parseRequest(text string, r *Request) error {
	h.text, h.lines, h.edits, h.body = text, h.lines[:0], h.edits[:0], body{}
	*r = Request{Protocol: HTTP1, Fields: r.Fields[:0]}
	end := strings.IndexByte(text, '\n')
	h.first = end + 1
	if err := requestLine(text[:end-1], r); err != nil {
		return err
	}
	var err error
	if h.lines, err = fieldLines(text, h.first, h.lines); err != nil {
		return err
	}
	var f facts
	for i := range h.lines {
		f.add(h.lines[i].Field)
	}
	if err := f.frame(r, &h.body); err != nil {
		return err
	}
	if err := f.place(r); err != nil {
		return err
	}
	if err := h.dropHop(&f, r); err != nil {
		return err
	}
	h.fields(r)
	return nil
}

// requestLine reads "METHOD TARGET HTTP/1.x", one space between them.
func requestLine(text string, r *Request) error {
	method, rest, _ := strings.Cut(text, " ")
	target, version, ok := strings.Cut(rest, " ")
	switch {
	case !ok || target == "":
		return malformed(400, "the first line is not METHOD TARGET VERSION")
	case !validMethod(method):
		return malformed(400, "an invalid method")
	case version == "HTTP/1.1":
		r.Minor = 1
	case version == "HTTP/1.0":
	case strings.HasPrefix(version, "HTTP/") && isToken(version[5:]):
		return malformed(505, "a version other than HTTP/1.0 and 1.1")
	default:
		return malformed(400, "an invalid version")
	}
	if !all(target, inTarget) {
		return malformed(400, "an invalid character in the target")
	}
	r.Method, r.Target = method, target
	return nil
}

// validMethod wants upper case, as all registered methods have it: servers
// differ in whether "get" is GET.
func validMethod(m string) bool {
	return isToken(m) && len(m) <= 64 && m == strings.ToUpper(m)
}

// facts are the fields that frame and place a request.
type facts struct {
	hosts        int
	host         string
	lengths      int
	length       string
	codings      int
	coding       string
	upgrades     int
	websocket    bool
	isConnection bool
}

func (f *facts) add(field Field) {
	switch len(field.Name) { // of the names below: most fields are none of them
	case 4, 7, 10, 14, 17:
	default:
		return
	}
	switch {
	case strings.EqualFold(field.Name, "host"):
		f.hosts++
		f.host = field.Value
	case strings.EqualFold(field.Name, "content-length"):
		f.lengths++
		f.length = field.Value
	case strings.EqualFold(field.Name, "transfer-encoding"):
		f.codings++
		f.coding = field.Value
	case strings.EqualFold(field.Name, "upgrade"):
		f.upgrades++
		f.websocket = strings.EqualFold(field.Value, "websocket")
	case strings.EqualFold(field.Name, "connection"):
		f.isConnection = true
	}
}

// frame finds where the request ends, in the only way that every server does.
func (f *facts) frame(r *Request, b *body) error {
	switch {
	case f.codings > 0 && f.lengths > 0:
		return malformed(400, "Transfer-Encoding beside Content-Length")
	case f.codings > 1:
		return malformed(400, "more than one Transfer-Encoding")
	case f.codings > 0 && r.Minor == 0:
		return malformed(400, "Transfer-Encoding in HTTP/1.0")
	case f.codings > 0 && !strings.EqualFold(f.coding, "chunked"):
		return malformed(501, "a transfer coding other than chunked")
	case f.codings > 0:
		b.kind = bodyChunked
		b.strict = true
	case f.lengths > 1:
		return malformed(400, "more than one Content-Length")
	case f.lengths > 0:
		n, ok := decimal(f.length)
		if !ok {
			return malformed(400, "an invalid Content-Length")
		}
		if n > 0 {
			b.kind, b.left = bodyLength, n
		}
	}
	return nil
}

// place finds out whom the request is for.
func (f *facts) place(r *Request) error {
	switch {
	case f.hosts > 1:
		return malformed(400, "more than one Host")
	case f.hosts == 0 && r.Minor > 0:
		return malformed(400, "no Host")
	case !validHost(f.host):
		return malformed(400, "an invalid Host")
	}
	r.Host = f.host
	switch {
	case r.Method == "CONNECT":
		if !validAuthority(r.Target) || f.hosts > 0 && !strings.EqualFold(r.Host, r.Target) {
			return malformed(400, "CONNECT to something other than its Host")
		}
	case r.Target[0] == '/':
	case r.Target == "*" && r.Method == "OPTIONS":
	default:
		return absoluteForm(r)
	}
	return nil
}

// absoluteForm accepts a target with a host if that is the Host, too: servers
// take one or the other, so that not even a port that goes without saying may
// differ.
func absoluteForm(r *Request) error {
	const scheme = "http://"
	if len(r.Target) < len(scheme) || !strings.EqualFold(r.Target[:len(scheme)], scheme) {
		return malformed(400, "a target that is no path")
	}
	rest := r.Target[len(scheme):]
	i := strings.IndexByte(rest, '/')
	if i < 0 {
		return malformed(400, "a target without a path")
	}
	if rest[:i] == "" || !validHost(rest[:i]) || !strings.EqualFold(rest[:i], r.Host) {
		return malformed(400, "a target with another host than Host")
	}
	r.Target = rest[i:]
	return nil
}

// validHost knows names, addresses and a port; an empty one is allowed.
func validHost(host string) bool {
	if !all(host, inHost) {
		return false
	}
	name := host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		port := host[i+1:]
		name = host[:i]
		if _, ok := decimal(port); !ok && port != "" || len(port) > 5 {
			return false
		}
	}
	if strings.HasPrefix(name, "[") && strings.HasSuffix(name, "]") {
		a, err := netip.ParseAddr(name[1 : len(name)-1])
		return err == nil && a.Is6()
	}
	return !strings.ContainsAny(name, "[]:")
}

// validAuthority is a host with a port.
func validAuthority(s string) bool {
	i := strings.LastIndexByte(s, ':')
	return i > 0 && i < len(s)-1 && validHost(s)
}

// fields are what is left once the edits are made.
func (h *head1) fields(r *Request) {
	next := 0
	for i := range h.lines {
		if next < len(h.edits) && h.edits[next].line == i {
			if text := h.edits[next].text; text != "" {
				name, value, _ := strings.Cut(strings.TrimSuffix(text, "\r\n"), ": ")
				r.Fields = append(r.Fields, Field{Name: name, Value: value})
			}
			next++
			continue
		}
		r.Fields = append(r.Fields, h.lines[i].Field)
	}
}
