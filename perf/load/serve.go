package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
)

// The ports of the load's server.
const (
	EchoPort    = 7000 // sends back what it gets
	UpPort      = 7001 // takes what comes until it is told to stop, and then says how much, in 8 bytes
	DownPort    = 7002 // does so and meanwhile sends as much as it can
	HTTPPort    = 7003 // answers each request, of HTTP/1.1 or HTTP/2, with a page of 1 KB
	GRPCPort    = 7004 // grpc.testing.BenchmarkService: answers a unary call with as many bytes as it asks for
	FramesPort  = 7005 // answers an exchange of HTTP/2 with as many bytes as came
	SkippedPort = 7100 // as EchoPort, on both skip lists
)

const pageSize = 1024

// Port is where the server expects a kind of load.
func Port(kind string) uint16 {
	switch kind {
	case Up:
		return UpPort
	case Down, Both:
		return DownPort
	case HTTP:
		return HTTPPort
	case GRPC:
		return GRPCPort
	case Frames:
		return FramesPort
	default:
		return EchoPort
	}
}

// Serve is the load's server, on all addresses. It ends with the context, or
// with the first port that fails.
func Serve(ctx context.Context) error {
	return serve(ctx, func(port uint16) (net.Listener, error) {
		return new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
	})
}

func serve(ctx context.Context, listen func(port uint16) (net.Listener, error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var serving sync.WaitGroup
	defer serving.Wait()
	for port, accept := range map[uint16]func(net.Listener) error{
		EchoPort: each(echo), UpPort: each(sink), DownPort: each(stream), SkippedPort: each(echo), HTTPPort: pages, GRPCPort: calls, FramesPort: each(answers),
	} {
		l, err := listen(port)
		if err != nil {
			cancel(err)
			break
		}
		context.AfterFunc(ctx, func() { _ = l.Close() })
		serving.Go(func() { cancel(accept(l)) })
	}
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func each(handle func(*net.TCPConn) error) func(net.Listener) error {
	return func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				// A client that is cut off is the client's failure to report.
				_ = errors.Join(handle(c.(*net.TCPConn)), c.Close())
			}()
		}
	}
}

func echo(c *net.TCPConn) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return err
		}
	}
}

func sink(c *net.TCPConn) error {
	total, err := drain(c)
	if err != nil {
		return err
	}
	return binary.Write(c, binary.BigEndian, total)
}

// stream sends until the client says to stop, and how much it got behind that.
func stream(c *net.TCPConn) error {
	var total uint64
	failed, ended := error(nil), make(chan struct{})
	go func() {
		defer close(ended)
		total, failed = drain(c)
	}()
	buf := make([]byte, 128<<10)
	for {
		select {
		case <-ended:
			if failed != nil {
				return failed
			}
			return binary.Write(c, binary.BigEndian, total)
		default:
		}
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
}

// drain reads to the stop.
func drain(c *net.TCPConn) (total uint64, err error) {
	buf := make([]byte, 256<<10)
	for {
		n, err := c.Read(buf)
		total += uint64(n)
		if n > 0 && buf[n-1] == stop {
			return total - 1, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func pages(l net.Listener) error {
	page := strings.Repeat("x", pageSize)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{ReadHeaderTimeout: patience, Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, page) // a client that is gone is its own failure to report
	})}
	return server.Serve(l)
}
