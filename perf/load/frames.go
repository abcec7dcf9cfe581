package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// exchanges makes the same request of HTTP/2, over and over, on one connection.
// The frames are those of a unary call of gRPC, but each side sends all of its
// own with one write. gRPC does so or makes three of them, by how its goroutines
// are scheduled, and sends PINGs at times that depend on the machine: what
// proxies ask of the kernel would be counted with what gRPC does.
func exchanges(ctx context.Context, c *client) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	e := newEnd(conn)
	if _, err := e.out.WriteString(http2.ClientPreface); err != nil {
		return err
	}
	if err := e.WriteSettings(); err != nil {
		return err
	}
	payload := make([]byte, c.Size)
	id := uint32(1)
	for now := time.Now(); now.Before(c.end); id += 2 {
		err := errors.Join(
			e.headers(id, false, ":method", "POST", ":scheme", "http", ":path", "/grpc.testing.BenchmarkService/UnaryCall",
				":authority", c.Address, "content-type", "application/grpc", "te", "trailers"),
			e.WriteData(id, true, payload), e.out.Flush())
		if err != nil {
			return err
		}
		n, err := e.await(id)
		if err != nil {
			return err
		}
		if n != c.Size {
			return fmt.Errorf("an answer of %d bytes, not %d", n, c.Size)
		}
		c.done.Bytes += uint64(2 * n)
		after := time.Now()
		c.times = append(c.times, after.Sub(now))
		now = after
	}
	return nil
}

// answers serves them: with as many bytes as came.
func answers(c *net.TCPConn) error {
	e := newEnd(c)
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(e.in, preface); err != nil {
		return err
	}
	if string(preface) != http2.ClientPreface {
		return errors.New("no HTTP/2")
	}
	if err := errors.Join(e.WriteSettings(), e.out.Flush()); err != nil {
		return err
	}
	for id := uint32(1); ; id += 2 {
		n, err := e.await(id)
		if err != nil {
			return err
		}
		err = errors.Join(
			e.headers(id, false, ":status", "200", "content-type", "application/grpc"),
			e.WriteData(id, false, make([]byte, n)),
			e.headers(id, true, "grpc-status", "0"), e.out.Flush())
		if err != nil {
			return err
		}
	}
}

// maxExchange is how many bytes one goes with either way: those of one frame.
const maxExchange = 16 << 10

// end is one end of a connection: what it writes goes out when out is flushed.
type end struct {
	*http2.Framer
	in      *bufio.Reader
	out     *bufio.Writer
	encoder *hpack.Encoder
	block   bytes.Buffer
}

func newEnd(conn net.Conn) *end {
	e := &end{in: bufio.NewReader(conn), out: bufio.NewWriterSize(conn, 2*maxExchange)}
	e.Framer = http2.NewFramer(e.out, e.in)
	e.SetMaxReadFrameSize(maxExchange)
	e.encoder = hpack.NewEncoder(&e.block)
	return e
}

func (e *end) headers(id uint32, last bool, fields ...string) error {
	e.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := e.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			return err
		}
	}
	return e.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: e.block.Bytes(), EndStream: last, EndHeaders: true})
}

// await reads until the other end has sent the last of a stream, and returns of
// how many bytes that was. What it has to say to the other end goes out with
// its own next frames.
func (e *end) await(id uint32) (n int, err error) {
	for {
		frame, err := e.ReadFrame()
		if err != nil {
			return n, err
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = e.WriteSettingsAck()
			}
		case *http2.PingFrame:
			err = e.WritePing(true, f.Data)
		case *http2.DataFrame:
			if k := len(f.Data()); k > 0 {
				if n += k; n > maxExchange {
					return n, fmt.Errorf("more than %d bytes", maxExchange)
				}
				err = e.WriteWindowUpdate(0, uint32(k))
			}
		case *http2.RSTStreamFrame:
			err = fmt.Errorf("the stream was reset: %v", f.ErrCode)
		}
		if err != nil {
			return n, err
		}
		if h := frame.Header(); h.StreamID == id && (h.Type == http2.FrameData || h.Type == http2.FrameHeaders) && h.Flags.Has(http2.FlagDataEndStream) {
			return n, nil
		}
	}
}
