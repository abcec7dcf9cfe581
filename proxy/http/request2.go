package http

import (
	"errors"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/h2"
)

// parseRequest2 reads a request's header of HTTP/2 and returns the length of
// its body, -1 if it is not known. It refuses what RFC 9113 section 8 calls
// malformed, and what would be another request for an application that turns
// it into HTTP/1.
func parseRequest2(m h2.Message, r *Request) (length int64, err error) {
	if m.Malformed != "" {
		return -1, errors.New(m.Malformed)
	}
	r.Protocol = HTTP2
	var scheme, path, authority string
	seen := map[string]int{}
	for i := range m.Fields {
		f := &m.Fields[i]
		if !f.IsPseudo() {
			break
		}
		seen[f.Name]++
		switch f.Name {
		case ":method":
			r.Method = f.Value
		case ":scheme":
			scheme = f.Value
		case ":path":
			path = f.Value
		case ":authority":
			authority = f.Value
		default: // :protocol, too: extended CONNECT is not offered
			return -1, errors.New("an unknown pseudo header")
		}
		if seen[f.Name] > 1 {
			return -1, errors.New("a pseudo header twice")
		}
	}
	r.Host, r.Target = authority, path
	if length, err = fields2(m, r, seen[":authority"] > 0); err != nil {
		return -1, err
	}
	return length, place2(r, scheme, len(seen))
}

// fields2 checks what is not a pseudo header.
func fields2(m h2.Message, r *Request, hasAuthority bool) (length int64, err error) {
	length = -1
	hosts, lengths := 0, 0
	cookie := -1
	for i := range m.Fields {
		f := &m.Fields[i]
		if f.IsPseudo() {
			continue
		}
		if strings.TrimSpace(f.Value) != f.Value {
			return -1, errors.New("space around the value of " + f.Name)
		}
		switch f.Name {
		case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings":
			return -1, errors.New("a header of HTTP/1 connections")
		case "te":
			if !strings.EqualFold(f.Value, "trailers") {
				return -1, errors.New("te other than trailers")
			}
		case "host":
			if hosts++; hosts > 1 || hasAuthority && !strings.EqualFold(f.Value, r.Host) {
				return -1, errors.New("a Host other than :authority")
			}
			r.Host = f.Value
		case "content-length":
			n, ok := decimal(f.Value)
			if lengths++; lengths > 1 || !ok || m.End && n != 0 {
				return -1, errors.New("an invalid Content-Length")
			}
			length = n
		case "cookie":
			if cookie >= 0 { // RFC 9113 section 8.2.3
				r.Fields[cookie].Value += "; " + f.Value
				continue
			}
			cookie = len(r.Fields)
		}
		if len(r.Fields) == maxFields {
			return -1, errors.New("too many header fields")
		}
		r.Fields = append(r.Fields, Field{Name: f.Name, Value: f.Value})
	}
	return length, nil
}

// place2 finds out whom the request is for; pseudo is how many pseudo headers
// there are.
func place2(r *Request, scheme string, pseudo int) error {
	switch {
	case !validMethod(r.Method):
		return errors.New("an invalid method")
	case !validHost(r.Host):
		return errors.New("an invalid :authority")
	case r.Method == "CONNECT":
		if pseudo != 2 || !validAuthority(r.Host) {
			return errors.New("CONNECT with something other than an authority")
		}
		r.Target = r.Host
		return nil
	case scheme != "http" && scheme != "https":
		return errors.New("an invalid :scheme")
	case r.Target == "" || !all(r.Target, inTarget):
		return errors.New("an invalid :path")
	case r.Target[0] != '/' && !(r.Target == "*" && r.Method == "OPTIONS"):
		return errors.New("a :path that is no path")
	case r.Host == "":
		return errors.New("no :authority")
	}
	return nil
}
