// Package zdstest plays Istio's CNI agent towards who takes the pods from it,
// for tests. It sends what it is told to, right or wrong.
package zdstest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/tacit-mesh/tacit/redirect/zds/protocol"
)

// patience bounds each wait for the other side. Istio's agent waits 5 s for
// an answer.
const patience = 20 * time.Second

// Agent listens.
type Agent struct{ l *net.UnixListener }

// Listen makes the socket.
func Listen(path string) (*Agent, error) {
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	return &Agent{l}, nil
}

// Close ends it; the socket's file goes, too.
func (a *Agent) Close() error { return a.l.Close() }

// Accept waits for a proxy and its greeting.
func (a *Agent) Accept(ctx context.Context) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := a.l.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = a.l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	u, err := a.l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	c := &Conn{u}
	hello := new(protocol.Hello)
	if err := c.receive(hello); err != nil {
		return nil, errors.Join(err, u.Close())
	}
	if hello.GetVersion() != protocol.Version_VERSION_1 {
		return nil, errors.Join(fmt.Errorf("greeted with version %v", hello.GetVersion()), u.Close())
	}
	return c, nil
}

// Conn is a connection of a proxy.
type Conn struct{ u *net.UnixConn }

// Close ends it.
func (c *Conn) Close() error { return c.u.Close() }

// Add sends a pod with its network namespace, the file at netns.
func (c *Conn) Add(uid string, info *protocol.WorkloadInfo, netns string) error {
	f, err := os.Open(netns)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return c.Send(&protocol.Request{Payload: &protocol.Request_Add{Add: &protocol.AddWorkload{Uid: uid, WorkloadInfo: info}}}, int(f.Fd()))
}

// Keep names a pod whose namespace is not known.
func (c *Conn) Keep(uid string) error {
	return c.Send(&protocol.Request{Payload: &protocol.Request_Keep{Keep: &protocol.KeepWorkload{Uid: uid}}})
}

// Del takes a pod away.
func (c *Conn) Del(uid string) error {
	return c.Send(&protocol.Request{Payload: &protocol.Request_Del{Del: &protocol.DelWorkload{Uid: uid}}})
}

// SnapshotSent ends the list of the pods there are.
func (c *Conn) SnapshotSent() error {
	return c.Send(&protocol.Request{Payload: &protocol.Request_SnapshotSent{SnapshotSent: &protocol.SnapshotSent{}}})
}

// Nack is a request that the other side has not carried out.
type Nack struct{ text string }

func (n *Nack) Error() string { return n.text }

// Send sends a request and waits for the answer: an error in that is a *Nack.
func (c *Conn) Send(r *protocol.Request, fds ...int) error {
	payload, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	return c.SendRaw(payload, fds...)
}

// SendRaw is Send for any packet.
func (c *Conn) SendRaw(payload []byte, fds ...int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := c.u.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, _, err := c.u.WriteMsgUnix(payload, rights, nil); err != nil {
		return err
	}
	response := new(protocol.Response)
	if err := c.receive(response); err != nil {
		return err
	}
	if response.GetAck() == nil {
		return errors.New("an answer that is no acknowledgement")
	}
	if text := response.GetAck().GetError(); text != "" {
		return &Nack{text}
	}
	return nil
}

func (c *Conn) receive(m proto.Message) error {
	var payload [1024]byte // what Istio's agent has room for
	if err := c.u.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	n, _, flags, _, err := c.u.ReadMsgUnix(payload[:], nil)
	if err != nil {
		return err
	}
	if flags&unix.MSG_TRUNC != 0 {
		return fmt.Errorf("an answer longer than %d bytes", len(payload))
	}
	return proto.Unmarshal(payload[:n], m)
}
