// Package protocol is what the agent and the proxy share: the messages
// between them, the connection that carries these with descriptors, and the
// kinds of sockets that are handed over.
//
// What does not belong here: who may connect, and what either side does with
// a socket.
package protocol

import (
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Version is the newest version of the protocol that this code speaks.
const Version = 2

// MaxDescriptors is the kernel's bound on descriptors in one packet.
const MaxDescriptors = 253

// MaxPods bounds how many pods are offered over one connection.
const MaxPods = 4096

const (
	maxMessage  = 32 << 10
	sendTimeout = 5 * time.Second
)

// Agree is the version that two sides speak, which is the lower of theirs if
// they are at most one apart.
func Agree(own, peer uint32) (uint32, error) {
	if peer == 0 || own == 0 || max(own, peer)-min(own, peer) > 1 {
		return 0, fmt.Errorf("the other side speaks version %d of the hand-over protocol, this one %d: at most one apart is possible", peer, own)
	}
	return min(own, peer), nil
}

// Conn carries messages with descriptors. One goroutine may send and one
// receive at a time.
type Conn struct {
	c       *net.UnixConn
	payload [maxMessage + 1]byte
	control []byte
}

// NewConn takes over a SOCK_SEQPACKET connection.
func NewConn(c *net.UnixConn) *Conn {
	return &Conn{c: c, control: make([]byte, unix.CmsgSpace(MaxDescriptors*4))}
}

// Close ends the connection.
func (c *Conn) Close() error { return c.c.Close() }

// SetReadDeadline bounds the receives to come. Of a closed connection they
// will tell themselves.
func (c *Conn) SetReadDeadline(t time.Time) { _ = c.c.SetReadDeadline(t) }

// Send sends one message. The descriptors stay the caller's.
func (c *Conn) Send(m proto.Message, fds ...int) error {
	payload, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("marshal: %w", err)
	}
	if len(payload) > maxMessage || len(payload) == 0 || len(fds) > MaxDescriptors {
		return fmt.Errorf("send: %d bytes and %d descriptors are not possible in one message", len(payload), len(fds))
	}
	var control []byte
	if len(fds) > 0 {
		control = unix.UnixRights(fds...)
	}
	if err := c.c.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if _, _, err := c.c.WriteMsgUnix(payload, control, nil); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// receive returns one packet; the descriptors are the caller's.
func (c *Conn) receive() ([]byte, []int, error) {
	n, fds, err := ReadPacket(c.c, c.payload[:], c.control)
	if err != nil {
		return nil, nil, fmt.Errorf("receive: %w", err)
	}
	return c.payload[:n], fds, nil
}

// PacketError says that a packet did not arrive whole; the connection may have
// others that do.
type PacketError struct{ reason string }

func (e *PacketError) Error() string { return e.reason }

// ReadPacket reads one packet of a SOCK_SEQPACKET connection into payload,
// which must be longer than any packet may be, with control as the room for
// descriptors. These are the caller's. Of a packet that is a [PacketError]
// there are none, but what payload has got of it.
func ReadPacket(c *net.UnixConn, payload, control []byte) (n int, fds []int, err error) {
	n, cn, flags, _, err := c.ReadMsgUnix(payload, control)
	if err != nil {
		// An empty packet counts as the end, and may carry descriptors.
		fds, _ = descriptors(control[:cn])
		CloseAll(fds)
		return 0, nil, err
	}
	fds, err = descriptors(control[:cn])
	switch {
	case err != nil:
	case flags&unix.MSG_CTRUNC != 0:
		err = &PacketError{"descriptors were lost: there are too many, or the limit of open files (RLIMIT_NOFILE) is reached"}
	case flags&unix.MSG_TRUNC != 0 || n == len(payload):
		err = &PacketError{fmt.Sprintf("message longer than %d bytes", len(payload)-1)}
	case n == 0:
		err = net.ErrClosed
	}
	if err != nil {
		CloseAll(fds)
		return n, nil, err
	}
	return n, fds, nil
}

func descriptors(control []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, os.NewSyscallError("parse control message", err)
	}
	var fds []int
	for _, m := range messages {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds, nil
}

// ReceiveFromProxy is the agent's receive: a message that has been checked by
// [ParseFromProxy], and its descriptors, which are the caller's.
func (c *Conn) ReceiveFromProxy() (*FromProxy, []int, error) {
	payload, fds, err := c.receive()
	if err != nil {
		return nil, nil, err
	}
	m, err := ParseFromProxy(payload, len(fds))
	if err != nil {
		CloseAll(fds)
		return nil, nil, err
	}
	return m, fds, nil
}

// ReceiveFromAgent is the proxy's receive.
func (c *Conn) ReceiveFromAgent() (*FromAgent, []int, error) {
	payload, fds, err := c.receive()
	if err != nil {
		return nil, nil, err
	}
	m, err := ParseFromAgent(payload, len(fds))
	if err != nil {
		CloseAll(fds)
		return nil, nil, err
	}
	return m, fds, nil
}
