package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/tacit-mesh/tacit/internal/portions"
)

const (
	// forwardTimeout is less than resolvers wait before they ask again
	// (resolv.conf(5): 5 s), so that they hear of a failure.
	forwardTimeout = 4500 * time.Millisecond
	// attemptTimeout is how long one server has before the next one is asked,
	// or the same one once more: datagrams get lost.
	attemptTimeout = 1500 * time.Millisecond
	// maxForwards bounds the queries under way at a time, for all pods. No pod
	// takes more than half of what the others leave, so that some who ask for
	// names without an answer leave something to all.
	maxForwards = 2048
)

// Forwarder asks the servers of a resolv.conf what the mesh does not know, from
// this process's own network namespace. It is shared by all pods.
type Forwarder struct {
	servers *resolvConf
	room    *portions.Portions[*Server]
	absent  *negatives
	buffers sync.Pool // of *[]byte, each with room for any message
}

// NewForwarder asks the servers that the file names; it is read again when it
// changes.
func NewForwarder(file string) *Forwarder {
	return &Forwarder{
		servers: &resolvConf{file: file, port: 53},
		room:    portions.New[*Server](maxForwards, maxForwardsPerPod, true),
		absent:  newNegatives(),
		buffers: sync.Pool{New: func() any { b := make([]byte, mdns.MaxMsgSize); return &b }},
	}
}

// errBusy is the reason of a query that was not forwarded as too many are.
var errBusy = errors.New("too many queries are being forwarded already")

// take makes room for one more; whoever got it gives it back.
func take(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// ask forwards a query byte for byte but for its id, over UDP, and returns the
// answer as it came, with the query's id.
func (f *Forwarder) ask(ctx context.Context, asking *Server, q query) ([]byte, error) {
	if known := f.absent.find(q, time.Now()); known != nil {
		return known, nil
	}
	if !f.room.Take(asking, 1) {
		return nil, errBusy
	}
	defer f.room.Give(asking, 1)
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	servers, err := f.servers.list()
	if err != nil {
		return nil, err
	}
	var last []byte
	for attempt := range max(2, len(servers)) {
		got, attemptErr := f.attempt(ctx, servers[attempt%len(servers)], q)
		switch {
		case attemptErr != nil:
			err = attemptErr
		case attempt+1 < len(servers) && isRefusal(got): // another one may know
			last = got
		default:
			f.absent.keep(q, got, time.Now())
			return got, nil
		}
	}
	if last != nil {
		return last, nil
	}
	return nil, fmt.Errorf("no answer from the servers in %s: %w", f.servers.file, err)
}

// attempt asks one server, from a port that nobody can know, and takes no word
// but its answer to this very question.
func (f *Forwarder) attempt(ctx context.Context, server netip.AddrPort, q query) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	sent, id := renumbered(q.raw)
	if _, err := conn.Write(sent); err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	for {
		if err := awaitPacket(raw); err != nil {
			return nil, err
		}
		got, err := f.read(conn)
		if err != nil {
			return nil, err
		}
		if isAnswer(q, id, got) {
			return numbered(got, q.id), nil
		}
	}
}

// read reads a packet that is there, so that nobody holds a buffer who waits.
func (f *Forwarder) read(conn *net.UDPConn) ([]byte, error) {
	buffer := f.buffers.Get().(*[]byte)
	defer f.buffers.Put(buffer)
	n, err := conn.Read(*buffer)
	return bytes.Clone((*buffer)[:n]), err
}

// renumbered is a copy of a message with another id, which nobody can guess.
func renumbered(raw []byte) (message []byte, id uint16) {
	id = uint16(rand.Uint32())
	return numbered(bytes.Clone(raw), id), id
}

func numbered(message []byte, id uint16) []byte {
	binary.BigEndian.PutUint16(message, id)
	return message
}

// isAnswer reports whether a message answers the query that was sent with this
// id.
func isAnswer(q query, id uint16, got []byte) bool {
	if len(got) < headerLength || binary.BigEndian.Uint16(got) != id || got[2]&0x80 == 0 || int(got[2]>>3)&0xf != q.operation {
		return false
	}
	if binary.BigEndian.Uint16(got[4:]) == 0 { // as servers refuse what they do not understand
		return code(got) != mdns.RcodeSuccess && code(got) != mdns.RcodeNameError
	}
	end, ok := skipName(got, headerLength)
	if !ok || len(got) < end+4 || end+4 != q.end {
		return false
	}
	return bytes.Equal(got[end:end+4], q.raw[end:q.end]) && sameName(got[headerLength:end], q.raw[headerLength:end])
}

// sameName compares names without regard to the case of ASCII letters. Lengths
// of labels are below 64, so that none of them looks like a letter.
func sameName(a, b []byte) bool {
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}

func code(message []byte) int { return int(message[3] & 0xf) }

// isRefusal reports whether a server did not say anything about the name.
func isRefusal(answer []byte) bool {
	c := code(answer)
	return c == mdns.RcodeServerFailure || c == mdns.RcodeRefused || c == mdns.RcodeNotImplemented
}
