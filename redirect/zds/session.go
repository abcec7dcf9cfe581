package zds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	handoff "github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/redirect/procs"
	"github.com/tacit-mesh/tacit/redirect/zds/protocol"
)

const (
	maxMessage = 1024 // both ways
	// maxDescriptors leaves room to see that there are too many.
	maxDescriptors = 4
	sendTimeout    = 5 * time.Second
)

// session is one connection to the agent.
type session struct {
	*Client
	conn    *net.UnixConn
	named   map[string]bool // UIDs before the end of the snapshot, then nil
	payload [maxMessage + 1]byte
	control []byte
}

// session connects to the agent and answers it until the connection ends. It
// reports whether the agent has named all pods.
func (c *Client) session(ctx context.Context) (synced bool, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", c.cfg.Socket)
	if err != nil {
		return false, fmt.Errorf("connect: %w", err)
	}
	s := &session{
		Client: c, conn: conn.(*net.UnixConn), named: map[string]bool{}, control: make([]byte, unix.CmsgSpace(4*maxDescriptors)),
	}
	defer s.conn.Close()
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	if err := s.checkPeer(); err != nil {
		return false, err
	}
	if err := s.send(&protocol.Hello{Version: protocol.Version_VERSION_1}); err != nil {
		return false, err
	}
	for {
		if err := s.answer(); err != nil {
			return s.named == nil, err
		}
	}
}

// checkPeer makes sure that it is somebody with this process's own rights who
// says which pod is which.
func (s *session) checkPeer() error {
	cred, err := procs.Peer(s.conn)
	if err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("who listens on %s is process %d of user %d: Istio's CNI agent runs as user %d", s.cfg.Socket, cred.Pid, cred.Uid, os.Geteuid())
	}
	return nil
}

// answer waits for a request, does what it says, and answers what came of it.
// One that is wrong leaves the others as they are.
func (s *session) answer() error {
	request, fds, err := s.receive()
	var bad *badRequest
	if err != nil && !errors.As(err, &bad) {
		return fmt.Errorf("receive: %w", err)
	}
	if err == nil {
		err = s.do(request, fds)
	}
	s.name(request, err)
	ack := &protocol.Ack{}
	if err != nil {
		s.cfg.Log.Error("request of Istio's CNI agent", zap.Error(err))
		ack.Error = shortened(err.Error())
	}
	return s.send(&protocol.Response{Payload: &protocol.Response_Ack{Ack: ack}})
}

// shortened leaves room for the message around it.
func shortened(text string) string {
	const most = maxMessage - 24
	return strings.ToValidUTF8(text[:min(len(text), most)], "?")
}

// badRequest is one that can be answered.
type badRequest struct{ error }

func bad(format string, args ...any) error { return &badRequest{fmt.Errorf(format, args...)} }

// receive returns a request and its descriptors, which are the caller's. Of a
// request whose descriptors were lost it returns what it says.
func (s *session) receive() (*protocol.Request, []int, error) {
	n, fds, err := handoff.ReadPacket(s.conn, s.payload[:], s.control)
	var packet *handoff.PacketError
	if err != nil && !errors.As(err, &packet) {
		return nil, nil, err
	}
	request := new(protocol.Request)
	parsed := proto.Unmarshal(s.payload[:n], request)
	switch {
	case err != nil && parsed == nil:
		return request, nil, bad("%s: %w", describe(request), err)
	case err != nil:
		return nil, nil, bad("request: %w", err)
	case parsed != nil:
		handoff.CloseAll(fds)
		return nil, nil, bad("request: %w", parsed)
	}
	return request, fds, nil
}

func (s *session) send(m proto.Message) error {
	payload, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("marshal: %w", err)
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if _, err := s.conn.Write(payload); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}
