package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// idleTimeout is how long a connection may be without a query, and a query on
// its way.
const idleTimeout = 10 * time.Second

// ServeTCP answers the queries of one connection, one after the other, and
// closes it. original is where it was going; what the mesh does not know is
// asked there, from inside the pod. Where that is not known, an address that
// is not valid, the servers of the Forwarder are asked.
func (s *Server) ServeTCP(ctx context.Context, conn *net.TCPConn, original netip.AddrPort) {
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	c := &connection{Server: s, client: conn, original: original}
	defer c.closeServer()
	for {
		raw, err := readMessage(conn, time.Now().Add(idleTimeout))
		if err != nil {
			return
		}
		q, out, done := s.own(raw, true)
		if !done {
			if q.kind == mdns.TypeAXFR || q.kind == mdns.TypeIXFR {
				c.join(ctx, q)
				return
			}
			out = s.forward(q, true, func() ([]byte, error) { return c.ask(ctx, q) })
		}
		if out == nil || writeMessage(conn, out, time.Now().Add(idleTimeout)) != nil {
			return
		}
	}
}

// connection is one of a pod, and the one that its further queries go on by.
type connection struct {
	*Server
	client   *net.TCPConn
	original netip.AddrPort
	server   *net.TCPConn // nil before the first, and after a failure
}

func (c *connection) closeServer() {
	if c.server != nil {
		_ = c.server.Close()
		c.server = nil
	}
}

// ask forwards one query. A server may have closed the connection since the
// last one: then there is another.
func (c *connection) ask(ctx context.Context, q query) ([]byte, error) {
	if !c.Forwarder.room.Take(c.Server, 1) {
		return nil, errBusy
	}
	defer c.Forwarder.room.Give(c.Server, 1)
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	for {
		used := c.server != nil
		out, err := c.attempt(ctx, q)
		if err == nil {
			return out, nil
		}
		c.closeServer()
		if !used || ctx.Err() != nil {
			return nil, err
		}
	}
}

func (c *connection) attempt(ctx context.Context, q query) ([]byte, error) {
	if err := c.dial(ctx); err != nil {
		return nil, err
	}
	server := c.server
	deadline, _ := ctx.Deadline()
	defer context.AfterFunc(ctx, func() { _ = server.SetDeadline(time.Unix(1, 0)) })()
	sent, id := renumbered(q.raw)
	if err := writeMessage(server, sent, deadline); err != nil {
		return nil, err
	}
	for {
		got, err := readMessage(server, deadline)
		if err != nil {
			return nil, err
		}
		if isAnswer(q, id, got) {
			return numbered(got, q.id), nil
		}
	}
}

// dial makes sure that there is a connection to a server.
func (c *connection) dial(ctx context.Context) error {
	if c.server != nil {
		return nil
	}
	if c.original.IsValid() {
		server, err := c.Dial(ctx, c.original)
		c.server = server
		return err
	}
	servers, err := c.Forwarder.servers.list()
	if err != nil {
		return err
	}
	for _, server := range servers {
		var conn net.Conn
		conn, err = (&net.Dialer{Timeout: attemptTimeout}).DialContext(ctx, "tcp", server.String())
		if err == nil {
			c.server = conn.(*net.TCPConn)
			return nil
		}
	}
	return err
}

// join leaves a connection to the server: the transfer of a zone has any number
// of answers.
func (c *connection) join(ctx context.Context, q query) {
	limited, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	err := errBusy
	if take(c.slots) {
		defer func() { <-c.slots }()
		if err = c.dial(limited); err == nil {
			err = writeMessage(c.server, q.raw, time.Now().Add(idleTimeout))
		}
	}
	c.Observe(Event{Kind: q.kindLabel(), TCP: true, Forwarded: true, Err: err})
	if err != nil {
		_ = writeMessage(c.client, failure(q, mdns.RcodeServerFailure), time.Now().Add(idleTimeout))
		return
	}
	if errors.Join(c.client.SetDeadline(time.Time{}), c.server.SetDeadline(time.Time{})) == nil {
		relay.Copy(ctx, c.client, c.server, new(relay.Counts))
	}
}

// readMessage reads one message with its length in front of it.
func readMessage(conn *net.TCPConn, deadline time.Time) ([]byte, error) {
	if err := conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(conn, message)
	return message, err
}

func writeMessage(conn *net.TCPConn, message []byte, deadline time.Time) error {
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	framed := append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(message)), uint16(len(message))), message...)
	_, err := conn.Write(framed)
	return err
}
