package dns

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"syscall"

	mdns "github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	batchSize = 32
	maxQuery  = 4096 // bytes of one that comes by UDP
)

// batch is what is received, and sent, with one system call.
type batch struct {
	in, out []ipv4.Message
	buffers [batchSize][maxQuery]byte
}

// batches are shared: an idle pod holds none.
var batches = sync.Pool{New: func() any {
	b := &batch{in: make([]ipv4.Message, batchSize), out: make([]ipv4.Message, 0, batchSize)}
	for i := range b.in {
		b.in[i].Buffers = [][]byte{b.buffers[i][:]}
	}
	return b
}}

// ServeUDP answers what comes to the socket until reads fail, as after its read
// deadline. Queries that were read by then are in forwards until they have been
// answered; who reads on need not wait for them. Answers leave from the address
// that the socket is bound to.
func (s *Server) ServeUDP(ctx context.Context, conn *net.UDPConn, forwards *sync.WaitGroup) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	packets := ipv4.NewPacketConn(conn) // batches of either family
	for {
		if err := awaitPacket(raw); err != nil {
			return err
		}
		b := batches.Get().(*batch)
		n, err := packets.ReadBatch(b.in, unix.MSG_DONTWAIT)
		if err != nil && !errors.Is(err, syscall.EAGAIN) { // another process was faster
			batches.Put(b)
			return err
		}
		for _, m := range b.in[:max(n, 0)] {
			s.packet(ctx, conn, forwards, b, m)
		}
		send(packets, b.out)
		b.out = b.out[:0]
		batches.Put(b)
	}
}

// awaitPacket waits without a buffer.
func awaitPacket(raw syscall.RawConn) error {
	var peek [1]byte
	var err error
	if waitErr := raw.Read(func(fd uintptr) bool {
		_, _, err = unix.Recvfrom(int(fd), peek[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	}); waitErr != nil {
		return waitErr
	}
	return err
}

// packet answers a query at once, with the others of the batch, or begins to
// forward it.
func (s *Server) packet(ctx context.Context, conn *net.UDPConn, forwards *sync.WaitGroup, b *batch, m ipv4.Message) {
	from, ok := m.Addr.(*net.UDPAddr)
	if !ok {
		return
	}
	q, out, done := s.own(m.Buffers[0][:m.N], false)
	if m.Flags&unix.MSG_TRUNC != 0 && len(q.raw) > 0 {
		out, done = failure(q, mdns.RcodeFormatError), true
	}
	if done {
		if out != nil {
			b.out = append(b.out, ipv4.Message{Buffers: [][]byte{out}, Addr: from})
		}
		return
	}
	q.raw = bytes.Clone(q.raw)
	forwards.Go(func() {
		out := s.forward(q, false, func() ([]byte, error) { return s.Forwarder.ask(ctx, s, q) })
		_, _ = conn.WriteToUDP(out, from) // whoever asked may be gone
	})
}

// send sends what can be sent: somebody who has asked and is gone keeps
// nobody else's answer back.
func send(packets *ipv4.PacketConn, out []ipv4.Message) {
	for len(out) > 0 {
		n, err := packets.WriteBatch(out, 0)
		if err != nil {
			n = 1
		}
		out = out[n:]
	}
}
