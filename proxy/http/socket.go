package http

import (
	"net"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// socket is a TCP connection as a Side.
type socket struct {
	*relay.Socket
	counts *relay.Counts
}

// NewSocket makes a Side of a TCP connection. counts may be nil; Sent are the
// bytes that come from it.
func NewSocket(conn *net.TCPConn, counts *relay.Counts) (Side, error) {
	s, err := relay.NewSocket(conn)
	if err != nil {
		return nil, err
	}
	if counts == nil {
		counts = new(relay.Counts)
	}
	return socket{s, counts}, nil
}

func (s socket) Read(class, head, limit int) (*relay.Buffer, int, error) {
	buf, n, err := s.Socket.Read(class, head, limit, true)
	if counted := s.counts.MoreSent(n); counted != nil && err == nil {
		buf.Free()
		return nil, 0, counted
	}
	return buf, n, err
}

// Send writes without waiting, and only what is left over with it: setting a
// deadline costs more than most writes.
func (s socket) Send(b []byte, from int, stalled func() error) error {
	n, err := s.Write(b[from:])
	if err == nil && from+n < len(b) {
		err = s.WriteAll(b[from+n:], stalled)
		n = len(b) - from
	}
	if counted := s.counts.MoreReceived(n); err == nil {
		err = counted
	}
	return err
}
