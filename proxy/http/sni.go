package http

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"
)

// maxHello is how long a ClientHello may be, its records included, for the name
// in it to be known.
const maxHello = 32 << 10

// maxParts is in how many parts it may come: each is another look at all of it,
// and whoever needs more than these only wants to keep us looking.
const maxParts = 1024

// serverName returns the name that the client's ClientHello is for, if its bytes
// begin with one. It waits for the whole of it, and reads past nothing. The name
// is what the client says: the application may serve another one.
func (c *conn) serverName() string {
	var slow *time.Timer
	defer func() {
		if slow != nil {
			slow.Stop()
		}
	}()
	for range maxParts {
		b := c.client.bytes()
		if !looksLikeHello(b) {
			return ""
		}
		name, short := parseHello(b)
		if !short || len(b) >= maxHello {
			return name
		}
		if slow == nil {
			slow = time.AfterFunc(headTimeout, c.client.side.Reset)
		}
		if c.client.fill() != nil {
			return "" // passing on what there is comes to the same end
		}
	}
	return ""
}

// looksLikeHello wants a handshake record of TLS with a ClientHello, as far as
// there are bytes.
func looksLikeHello(b []byte) bool {
	const handshake, clientHello = 22, 1
	return len(b) > 0 && b[0] == handshake &&
		(len(b) < 2 || b[1] == 3) &&
		(len(b) < 6 || b[5] == clientHello)
}

// parseHello has Go's own parser read a ClientHello; short says that it wants
// more than there is. A hello that it does not accept names nobody.
func parseHello(b []byte) (name string, short bool) {
	from := &helloConn{from: bytes.NewReader(b)}
	_ = tls.Server(from, &tls.Config{ // no handshake gets beyond its first message
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			name = hello.ServerName
			return nil, errParsed
		},
	}).Handshake()
	return name, name == "" && from.short
}

var errParsed = errors.New("the hello is all that is wanted")

// helloConn is a connection that has bytes to read, and takes what it is told
// for nothing.
type helloConn struct {
	net.Conn // nil: nothing else is called
	from     *bytes.Reader
	short    bool
}

func (c *helloConn) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.short = c.short || err == io.EOF
	return n, err
}

func (c *helloConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *helloConn) Close() error                     { return nil }
func (c *helloConn) SetDeadline(time.Time) error      { return nil }
func (c *helloConn) SetReadDeadline(time.Time) error  { return nil }
func (c *helloConn) SetWriteDeadline(time.Time) error { return nil }
