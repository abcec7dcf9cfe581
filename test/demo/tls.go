package demo

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

// The parts of TLS that are in clear, RFC 8446.
const (
	recordHeader      = 5
	maxRecord         = 1<<14 + 256 // section 5.2
	recordChange      = 20          // change_cipher_spec, sent for middleboxes
	recordHandshake   = 22
	recordApplication = 23

	helloServer       = 2
	extensionVersions = 43
	extensionKeyShare = 51
)

// summary is what was seen of TLS.
type summary struct {
	bytes, handshake, encrypted int
	group                       tls.CurveID
	sample                      string // the head of an encrypted record
}

// checkTLS fails unless every byte of every connection is inside a TLS 1.3
// record on the tunnels' port, encrypted from the hellos on.
func (t *traffic) checkTLS() (summary, error) {
	var sum summary
	servers := 0
	for key, s := range t.flows {
		if key.from.Port() != protocol.HBONEPort && key.to.Port() != protocol.HBONEPort {
			return sum, fmt.Errorf("a connection from %s to %s is none of port %d", key.from, key.to, protocol.HBONEPort)
		}
		if len(s.data) == 0 {
			continue
		}
		hello, err := sum.records(s.data)
		if err != nil {
			return sum, fmt.Errorf("from %s to %s: %w", key.from, key.to, err)
		}
		if key.from.Port() != protocol.HBONEPort {
			continue
		}
		servers++
		version, group, err := readServerHello(hello)
		if err != nil {
			return sum, fmt.Errorf("from %s to %s: %w", key.from, key.to, err)
		}
		if version != tls.VersionTLS13 {
			return sum, fmt.Errorf("the server chose %s", tls.VersionName(version))
		}
		sum.group = group
	}
	if servers == 0 || sum.encrypted == 0 {
		return sum, errors.New("no TLS connection was seen at all")
	}
	return sum, nil
}

// records walks one direction's records and returns the first, a hello.
func (sum *summary) records(data []byte) (hello []byte, err error) {
	sum.bytes += len(data)
	for len(data) > 0 {
		if len(data) < recordHeader {
			return nil, fmt.Errorf("%d bytes after the last TLS record", len(data))
		}
		kind, length := data[0], int(binary.BigEndian.Uint16(data[3:]))
		if data[1] != 3 || length > maxRecord || recordHeader+length > len(data) {
			return nil, fmt.Errorf("bytes that are no TLS record: % x", data[:min(len(data), 16)])
		}
		body := data[recordHeader : recordHeader+length]
		switch {
		case hello == nil && kind == recordHandshake:
			hello = body
			sum.handshake++
		case hello != nil && kind == recordApplication:
			sum.encrypted++
			sum.sample = fmt.Sprintf("% x … (%d bytes)", data[:min(len(data), 16)], length)
		case hello != nil && kind == recordChange && slices.Equal(body, []byte{1}):
		default:
			return nil, fmt.Errorf("a TLS record of type %d where only encrypted ones may be", kind)
		}
		data = data[recordHeader+length:]
	}
	return hello, nil
}

var errServerHello = errors.New("no complete ServerHello")

// readServerHello finds the version and the key exchange group that a server
// chose. A hello that says neither chose an older version.
func readServerHello(message []byte) (version uint16, group tls.CurveID, err error) {
	b := cursor{rest: message}
	kind := b.take(1)
	b.take(3 + 2 + 32) // length, legacy version, random
	b.vector(1)        // legacy session id
	b.take(2 + 1)      // cipher suite, legacy compression
	extensions := cursor{rest: b.vector(2)}
	if b.short || kind[0] != helloServer {
		return 0, 0, errServerHello
	}
	version = tls.VersionTLS12
	for len(extensions.rest) > 0 && !extensions.short {
		name, body := extensions.take(2), extensions.vector(2)
		if extensions.short || len(body) < 2 {
			break
		}
		switch binary.BigEndian.Uint16(name) {
		case extensionVersions:
			version = binary.BigEndian.Uint16(body)
		case extensionKeyShare:
			group = tls.CurveID(binary.BigEndian.Uint16(body))
		}
	}
	if extensions.short {
		return 0, 0, errServerHello
	}
	return version, group, nil
}

// cursor reads a message from its beginning; short says that it was too short
// for something.
type cursor struct {
	rest  []byte
	short bool
}

// take returns the next n bytes, or zeros where there are none.
func (c *cursor) take(n int) []byte {
	if n > len(c.rest) {
		c.short, c.rest = true, nil
		return make([]byte, n)
	}
	out := c.rest[:n]
	c.rest = c.rest[n:]
	return out
}

// vector returns what follows behind a length of so many bytes.
func (c *cursor) vector(lengthBytes int) []byte {
	n := 0
	for _, b := range c.take(lengthBytes) {
		n = n<<8 | int(b)
	}
	return c.take(n)
}
