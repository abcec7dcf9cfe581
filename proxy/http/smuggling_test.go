package http

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// Requests that parsers understand differently are refused with this status,
// and nothing of them reaches the application.
func TestSmuggling(t *testing.T) {
	const host = "Host: x\r\n"
	tests := []struct {
		name, request string
		status        int
	}{
		{"two lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400},
		{"the same length twice", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400},
		{"list of lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1, 1\r\n\r\na", 400},
		{"negative length", "POST / HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n", 400},
		{"length with a sign", "POST / HTTP/1.1\r\n" + host + "Content-Length: +1\r\n\r\na", 400},
		{"length in hexadecimal", "POST / HTTP/1.1\r\n" + host + "Content-Length: 0x1\r\n\r\na", 400},
		{"length past 64 bits", "POST / HTTP/1.1\r\n" + host + "Content-Length: 18446744073709551617\r\n\r\na", 400},
		{"empty length", "POST / HTTP/1.1\r\n" + host + "Content-Length: \r\n\r\n", 400},
		{"length and chunks", "POST / HTTP/1.1\r\n" + host + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"chunks and length", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400},
		{"chunked twice", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"chunked, chunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501},
		{"identity", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\n\r\n", 501},
		{"gzip, chunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
		{"xchunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
		{"chunked with a vertical tab", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", 400},
		{"empty coding", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n\r\n0\r\n\r\n", 501},
		{"chunks in HTTP/1.0", "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"space in front of the colon", "POST / HTTP/1.1\r\n" + host + "Content-Length : 1\r\n\r\na", 400},
		{"tab in front of the colon", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", 400},
		{"continued line", "GET / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n", 400},
		{"continued first line", "GET / HTTP/1.1\r\n X: a\r\n" + host + "\r\n", 400},
		{"bare LF", "GET / HTTP/1.1\nHost: x\n\n", 400},
		{"bare LF in the header", "GET / HTTP/1.1\r\n" + host + "X: a\nContent-Length: 5\r\n\r\n", 400},
		{"bare CR in a value", "GET / HTTP/1.1\r\n" + host + "X: a\rContent-Length: 5\r\n\r\n", 400},
		{"bare CR at the end", "GET / HTTP/1.1\r\n" + host + "X: a\r\r\n\r\n", 400},
		{"NUL in a value", "GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n", 400},
		{"control character in a name", "GET / HTTP/1.1\r\n" + host + "X\x01: a\r\n\r\n", 400},
		{"no name", "GET / HTTP/1.1\r\n" + host + ": a\r\n\r\n", 400},
		{"no colon", "GET / HTTP/1.1\r\n" + host + "X\r\n\r\n", 400},
		{"name beyond ASCII", "GET / HTTP/1.1\r\n" + host + "X\xe9: a\r\n\r\n", 400},
		{"invalid method", "G@T / HTTP/1.1\r\n" + host + "\r\n", 400},
		{"method in lower case", "get / HTTP/1.1\r\n" + host + "\r\n", 400},
		{"two spaces", "GET  / HTTP/1.1\r\n" + host + "\r\n", 400},
		{"space at the end", "GET / HTTP/1.1 \r\n" + host + "\r\n", 400},
		{"tab for a space", "GET /\tHTTP/1.1\r\n" + host + "\r\n", 400},
		{"space in the target", "GET /a b HTTP/1.1\r\n" + host + "\r\n", 400},
		{"no version", "GET /\r\n" + host + "\r\n", 400},
		{"HTTP/2.0", "GET / HTTP/2.0\r\n" + host + "\r\n", 505},
		{"HTTP/1.2", "GET / HTTP/1.2\r\n" + host + "\r\n", 505},
		{"http/1.1", "GET / http/1.1\r\n" + host + "\r\n", 400},
		{"no path", "GET x HTTP/1.1\r\n" + host + "\r\n", 400},
		{"fragment", "GET /a#b HTTP/1.1\r\n" + host + "\r\n", 400},
		{"control character in the target", "GET /a\x01 HTTP/1.1\r\n" + host + "\r\n", 400},
		{"asterisk", "GET * HTTP/1.1\r\n" + host + "\r\n", 400},
		{"authority without CONNECT", "GET x:80 HTTP/1.1\r\n" + host + "\r\n", 400},
		{"CONNECT to a path", "CONNECT / HTTP/1.1\r\n" + host + "\r\n", 400},
		{"CONNECT to another host", "CONNECT y:80 HTTP/1.1\r\n" + host + "\r\n", 400},
		{"another host in the target", "GET http://y/ HTTP/1.1\r\n" + host + "\r\n", 400},
		{"another port in the target", "GET http://x:81/ HTTP/1.1\r\n" + host + "\r\n", 400},
		{"a port in the target alone", "GET http://x:80/ HTTP/1.1\r\n" + host + "\r\n", 400},
		{"user in the target", "GET http://a@x/ HTTP/1.1\r\n" + host + "\r\n", 400},
		{"another scheme in the target", "GET ftp://x/ HTTP/1.1\r\n" + host + "\r\n", 400},
		{"no host in the target", "GET http:///a HTTP/1.1\r\n" + host + "\r\n", 400},
		{"no Host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"two Hosts", "GET / HTTP/1.1\r\n" + host + host + "\r\n", 400},
		{"two Hosts, one in other case", "GET / HTTP/1.1\r\n" + host + "hOST: y\r\n\r\n", 400},
		{"Host with a user", "GET / HTTP/1.1\r\nHost: a@x\r\n\r\n", 400},
		{"Host with a path", "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400},
		{"Host with a list", "GET / HTTP/1.1\r\nHost: x,y\r\n\r\n", 400},
		{"Host with a port that is none", "GET / HTTP/1.1\r\nHost: x:y\r\n\r\n", 400},
		{"Host with two ports", "GET / HTTP/1.1\r\nHost: x:1:2\r\n\r\n", 400},
		{"Connection that names Host", "GET / HTTP/1.1\r\n" + host + "Connection: host\r\n\r\n", 400},
		{"Connection that names a length", "POST / HTTP/1.1\r\n" + host + "Content-Length: 0\r\nConnection: content-length\r\n\r\n", 400},
		{"Connection that names Authorization", "GET / HTTP/1.1\r\n" + host + "Connection: close, Authorization\r\n\r\n", 400},
		{"header without end", "GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("a", 61<<10), 431},
		{"header of too many fields", "GET / HTTP/1.1\r\n" + host + strings.Repeat("a: b\r\n", 501) + "\r\n", 431},
	}
	got := make(chan string, 1)
	app := raw(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		got <- string(b)
	})
	gate := newGate(allowAll)
	to := proxied(t, app, HTTP1, gate)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, b := dial(t, to)
			say(t, c, test.request)
			r, err := http.ReadResponse(b, nil)
			must(t, err)
			_ = r.Body.Close()
			if r.StatusCode != test.status || !r.Close {
				t.Errorf("%d, close %v; want %d and the end", r.StatusCode, r.Close, test.status)
			}
			_ = c.Close()
			if b := within(t, got); b != "" {
				t.Errorf("the application got %q", b)
			}
		})
	}
	if n := len(gate.seen()); n != 0 {
		t.Errorf("%d of them were decided on", n)
	}
}

// A chunked body that parsers understand differently ends the connection
// before its last part reaches the application.
func TestSmugglingInChunks(t *testing.T) {
	tests := []struct{ name, body string }{
		{"size with a sign", "+1\r\na\r\n0\r\n\r\n"},
		{"size with 0x", "0x1\r\na\r\n0\r\n\r\n"},
		{"size with an underscore", "1_0\r\na\r\n0\r\n\r\n"},
		{"space behind the size", "1 \r\na\r\n0\r\n\r\n"},
		{"space in front of the size", " 1\r\na\r\n0\r\n\r\n"},
		{"empty size", "\r\na\r\n0\r\n\r\n"},
		{"size past 64 bits", "10000000000000001\r\na\r\n0\r\n\r\n"},
		{"bare LF behind the size", "1\na\r\n0\r\n\r\n"},
		{"bare LF behind the data", "1\r\na\n0\r\n\r\n"},
		{"bare LF in an extension", "1;x\n\r\na\r\n0\r\n\r\n"},
		{"bare CR in an extension", "1;x\ry\r\na\r\n0\r\n\r\n"},
		{"more data than the size", "1\r\nab\r\n0\r\n\r\n"},
		{"extension without end", "1;" + strings.Repeat("x", 20<<10) + "\r\na\r\n0\r\n\r\n"},
		{"bare LF at the end", "1\r\na\r\n0\r\n\n"},
		{"trailer Content-Length", "1\r\na\r\n0\r\nContent-Length: 5\r\n\r\n"},
		{"trailer Host", "1\r\na\r\n0\r\nhost: y\r\n\r\n"},
		{"trailer Authorization", "1\r\na\r\n0\r\nAuthorization: x\r\n\r\n"},
		{"trailer X_Forwarded_Client_Cert", "1\r\na\r\n0\r\nX_Forwarded_Client_Cert: URI=x\r\n\r\n"},
		{"continued trailer", "1\r\na\r\n0\r\nX: y\r\n z\r\n\r\n"},
		{"trailers without end", "1\r\na\r\n0\r\n" + strings.Repeat("X: y\r\n", 4<<10) + "\r\n"},
	}
	got := make(chan error, 100)
	app := raw(t, func(c *net.TCPConn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err == nil {
			_, err = io.ReadAll(r.Body)
		}
		got <- err
		_, _ = io.Copy(io.Discard, c)
	})
	to := proxied(t, app, HTTP1, newGate(allowAll))
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, b := dial(t, to)
			say(t, c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"+test.body)
			r, err := http.ReadResponse(b, nil)
			must(t, err)
			_ = r.Body.Close()
			if r.StatusCode != 400 && r.StatusCode != 431 {
				t.Errorf("%d", r.StatusCode)
			}
			if err := within(t, got); err == nil {
				t.Error("the application got a whole body")
			}
		})
	}
}
