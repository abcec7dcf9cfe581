package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// bulk sends, receives or both until the end. What only fills buffers on the
// way does not count: the server says how much it got.
func bulk(ctx context.Context, c *client) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	var (
		sending                  sync.WaitGroup
		sent, received, gotThere uint64
		sendErr                  error
	)
	sending.Go(func() { sent, sendErr = c.send(conn) })
	received, gotThere, err = receive(conn)
	sending.Wait()
	if err := errors.Join(sendErr, err); err != nil {
		return err
	}
	if gotThere != sent {
		return fmt.Errorf("the server got %d of %d bytes", gotThere, sent)
	}
	c.done.Bytes = sent + received
	return nil
}

// stop is the byte behind the last that a client sends. FIN would do, if all
// that is compared could pass it on while the other side goes on.
const stop = 1

// send says that it has ended when the time is over.
func (c *client) send(conn net.Conn) (sent uint64, err error) {
	buf := make([]byte, c.Size)
	if c.Kind == Down {
		<-time.After(time.Until(c.end))
	}
	for c.Kind != Down && err == nil && time.Now().Before(c.end) {
		var n int
		n, err = conn.Write(buf)
		sent += uint64(n)
	}
	if err == nil {
		_, err = conn.Write([]byte{stop})
	}
	return sent, err
}

// receive reads to the end, the last 8 bytes of which say what the server got.
func receive(conn net.Conn) (received, gotThere uint64, err error) {
	buf := make([]byte, 256<<10)
	var tail []byte
	for {
		n, err := conn.Read(buf)
		received += uint64(n)
		tail = append(tail, buf[max(0, n-8):n]...)
		tail = tail[max(0, len(tail)-8):]
		if errors.Is(err, io.EOF) && len(tail) == 8 {
			return received - 8, binary.BigEndian.Uint64(tail), nil
		}
		if err != nil {
			return received, 0, fmt.Errorf("receive: %w", err)
		}
	}
}
