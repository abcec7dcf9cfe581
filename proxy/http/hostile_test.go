package http

import (
	"math/rand/v2"
	"strings"
)

// Requests of HTTP/1, one behind another, for parsers to disagree about.
var hostile1 = []string{
	"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /deny HTTP/1.1\r\nHost: x\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.0\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: x\r\nX-Role: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: 1\r\n\r\nGET /deny HTTP/1.1\r\nHost: y\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /deny HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET http://x/a HTTP/1.1\r\nHost: x\r\nConnection: x-role\r\nX-Role: admin\r\nExpect: 100-continue\r\n\r\n",
	"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 34\r\n\r\nGET /deny HTTP/1.1\r\nHost: x\r\n\r\nabcdGET /b HTTP/1.1\r\nHost: y\r\nX-Role: b\r\n\r\n",
	"PUT /a?b=c HTTP/1.1\r\nHost: x\r\nX-Role: a\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n1f\r\nGET /deny HTTP/1.1\r\nHost: x\r\n\r\n\r\n0\r\n\r\nGET /c HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /x/..%2fdeny HTTP/1.1\r\nHost: x\r\n\r\nGET /x/%2e%2e/de%6ey?q=/a HTTP/1.1\r\nHost: x\r\n\r\nGET //deny HTTP/1.1\r\nHost: x\r\n\r\n",
	"HEAD /a HTTP/1.1\r\nHost: x\r\nX-Role: a\r\nX-Role: b\r\nx_role: c\r\n\r\nDELETE /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\nGET /d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /deny HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nGET /deny HTTP/1.1\r\nHost: x\r\n\r\n",
}

// What is put where it does not belong.
var (
	hostileBytes = []string{
		"\r", "\n", "\r\n", " ", "\t", "\v", "\f", "\x00", "\x1f", "\x7f", "\x85", "\xa0", "\xff", ":", ";", ",", "\"", "\\", "/", "//", "/../", "/./",
		"?", "#", "@", "%", "%2f", "%2e", "%5c", "%00", "%0d%0a", "0", "1", "+", "-", "_", "=", "a", "A", "é", "\r\n ", "\r\n\t", "\r\n\r\n",
	}
	hostileLines = []string{
		"Content-Length: 0", "Content-Length: 5", "Content-Length: 34", "Content-Length: 0x5", "Content-Length: +5", "Content-Length: 5, 5", "Content-Length:",
		"Content_Length: 5", "content-length : 5", "Content-Length\t: 5", "Content-Length: 5 ", " Content-Length: 5", "Content-Length: 00005", "Content-Length: 5\r",
		"Transfer-Encoding: chunked", "Transfer-Encoding: Chunked", "transfer-encoding:chunked", "Transfer-Encoding : chunked", "Transfer-Encoding: xchunked",
		"Transfer-Encoding:\vchunked", "Transfer-Encoding: chunked, identity", "Transfer-Encoding: identity, chunked", "Transfer-Encoding: \"chunked\"",
		"Transfer-Encoding: chunked;q=1", "Transfer_Encoding: chunked", "Transfer-Encoding:\r\n chunked", "X: y\nTransfer-Encoding: chunked", "X: y\rContent-Length: 5",
		"Host: y", "hOsT: y", "Host:", " Host: y", "X-Role: admin", "x-role: admin", "X-Role : admin", "X-Role:\tadmin", "X_Role: admin", "Connection: X-Role", "Connection: close, host",
		"Connection: content-length", "Connection: keep-alive", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "Upgrade: websocket", "Upgrade: websocket, h2c",
		"HTTP2-Settings: AAMAAABkAARAAAAA", "Expect: 100-continue", "Expect: 200", "TE: trailers", "Trailer: Host", ": a", "X", "X: \x00", "\xff: y",
		"GET /deny HTTP/1.1", "", "0", "5", "5;x", "0\r\nHost: y", "fffffffffffffff1",
	}
	hostileChanges = [][2]string{
		{"\r\n", "\n"}, {"\r\n", "\r"}, {"\r\n", "\r\r\n"}, {": ", ":"}, {": ", " : "}, {": ", ":\r\n "}, {" HTTP/1.1", ""}, {" HTTP/1.1", " HTTP/1.0"}, {" HTTP/1.1", " HTTP/0.9"},
		{" HTTP/1.1", " HTTP/1.1 HTTP/1.1"}, {" HTTP/1.1", "\tHTTP/1.1"}, {" HTTP/1.1", " HTTP/2.0"}, {"GET ", "get "}, {"GET ", " GET "}, {"GET ", "G\x00T "}, {"GET /", "GET http://y/"},
		{"GET /", "GET http://x/"}, {"GET /", "GET HTTP://x:80/"}, {"GET /", "GET http://x@y/"}, {"GET /", "GET //x/"}, {"GET /", "GET \\"}, {"GET /a", "GET /a/../deny"}, {"GET /a", "GET /%64eny"},
		{"GET /a", "CONNECT x:80"}, {"POST", "GET"}, {"POST", "CONNECT"}, {"Host", "Content-Length"}, {"chunked", "chunked "}, {"chunked", "CHUNKED"}, {"3;a=b", "3 ;a=b"}, {"3;a=b", "03"}, {"3;a=b", "2"}, {"3;a=b", "4"},
		{"3;a=b", "3;a=\"\r\n\""}, {"0\r\n", "00\r\n"}, {"0\r\n", "0;\n\r\n"}, {"0\r\n", "-0\r\n"}, {"1f", "1F"}, {"1f", "0x1f"}, {"Content-Length: 3", "Content-Length: 2"}, {"Content-Length: 3", "Content-Length: 4"},
	}
)

func oneOf[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

// mutate1 changes requests of HTTP/1 so that some parser may understand them
// as others.
func mutate1(r *rand.Rand, s string) string {
	for range 1 + r.IntN(3) {
		at := r.IntN(len(s) + 1)
		switch r.IntN(7) {
		case 0:
			s = s[:at] + oneOf(r, hostileBytes) + s[at:]
		case 1: // where a word ends, which is where parsers differ most
			ends := []int{}
			for i := range len(s) {
				if strings.IndexByte("\r\n: ;/", s[i]) >= 0 {
					ends = append(ends, i)
				}
			}
			if len(ends) > 0 {
				at = oneOf(r, ends)
				s = s[:at] + oneOf(r, hostileBytes) + s[at:]
			}
		case 2, 3:
			lines := strings.SplitAfter(s, "\r\n")
			i := r.IntN(len(lines))
			lines[i] += oneOf(r, hostileLines) + "\r\n"
			s = strings.Join(lines, "")
		case 4, 5:
			change := oneOf(r, hostileChanges)
			if n := strings.Count(s, change[0]); n > 0 {
				parts := strings.SplitN(s, change[0], 2+r.IntN(n))
				last := len(parts) - 1
				s = strings.Join(parts[:last], change[0]) + change[1] + parts[last]
			}
		case 6:
			end := min(len(s), at+r.IntN(4))
			s = s[:at] + s[end:]
		}
	}
	return s
}

// field2 is a field of HTTP/2, pseudo headers included.
type field2 struct{ name, value string }

var hostileFields = []field2{
	{"host", "y"}, {"host", "x"}, {"transfer-encoding", "chunked"}, {"content-length", "0"}, {"content-length", "3"}, {"content-length", "+3"}, {"content-length", "30"}, {"connection", "x-role"},
	{"upgrade", "h2c"}, {"te", "trailers"}, {"te", "gzip"}, {"x-role", "admin"}, {"X-Role", "admin"}, {"x_role", "admin"}, {"x-role\r\nx-role", "admin"}, {"a", "b\r\nx-role: admin"}, {"a", "b\nx-role: admin"},
	{"a", "b\r\n\r\nGET /deny HTTP/1.1\r\nhost: x\r\n\r\n"}, {"a: b\r\nx-role", "admin"}, {"a", "\x00"}, {"", "a"}, {":", "a"}, {":path", "/deny"}, {":authority", "y"}, {":method", "PUT"}, {":scheme", "https"},
	{":protocol", "websocket"}, {"x-role ", "admin"}, {" x-role", "admin"}, {"x-role:", "admin"}, {"x-role", " admin"}, {"cookie", "a=b"}, {"cookie", "c=d"}, {"trailer", "host"}, {"expect", "100-continue"},
}

// mutate2 does the same to a request of HTTP/2.
func mutate2(r *rand.Rand, fields []field2) []field2 {
	fields = append([]field2(nil), fields...)
	for range 1 + r.IntN(2) {
		at := r.IntN(len(fields))
		switch f := &fields[at]; r.IntN(5) {
		case 0:
			i := r.IntN(len(f.value) + 1)
			f.value = f.value[:i] + oneOf(r, hostileBytes) + f.value[i:]
		case 1:
			i := r.IntN(len(f.name) + 1)
			f.name = f.name[:i] + oneOf(r, hostileBytes) + f.name[i:]
		case 2, 3:
			fields = append(fields[:at], append([]field2{oneOf(r, hostileFields)}, fields[at:]...)...)
		case 4:
			f.value = oneOf(r, []string{"", "GET / HTTP/1.1\r\nhost: x\r\n\r\n", "/deny", "/a HTTP/1.1\r\nx-role: admin", "//deny", "/x/..%2fdeny", "*", "http://y/deny", "x:80", "x, y"})
		}
	}
	return fields
}
