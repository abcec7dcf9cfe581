package traffic

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// bulkPatience bounds a transfer on a machine that does much else meanwhile.
const bulkPatience = 3 * time.Minute

// random is a reproducible stream of random bytes.
type random struct {
	seed uint64
	size int64
}

func (r random) reader() io.Reader {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], r.seed)
	return io.LimitReader(rand.NewChaCha8(seed), r.size)
}

// send writes the stream.
func (r random) send(w io.Writer) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, r.reader(), make([]byte, 16<<10))
	return err
}

// check reads the very stream and FIN, and nothing else.
func (r random) check(from io.Reader) error {
	want := r.reader()
	got, expected := make([]byte, 16<<10), make([]byte, 16<<10)
	for at := int64(0); ; {
		n, err := from.Read(got)
		m, _ := io.ReadFull(want, expected[:n])
		if !bytes.Equal(got[:n], expected[:m]) {
			return fmt.Errorf("stream %d differs behind byte %d of %d", r.seed, at, r.size)
		}
		at += int64(n)
		switch {
		case errors.Is(err, io.EOF) && at == r.size:
			return nil
		case err != nil:
			return fmt.Errorf("stream %d after %d of %d bytes: %w", r.seed, at, r.size, err)
		}
	}
}

// talk sends one stream with FIN and checks the other, both at once.
func talk(c *net.TCPConn, out, in random) error {
	var both errgroup.Group
	abort := func(err error) error {
		if err != nil {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
		return err
	}
	both.Go(func() error {
		if err := out.send(c); err != nil {
			return abort(fmt.Errorf("send: %w", err))
		}
		return c.CloseWrite()
	})
	both.Go(func() error { return abort(in.check(c)) })
	return both.Wait()
}

// streams are what both ends of a connection say: the client begins with its
// seed and their sizes.
type streams struct{ Seed, Up, Down uint64 }

func (s streams) up() random   { return random{2 * s.Seed, int64(s.Up)} }
func (s streams) down() random { return random{2*s.Seed + 1, int64(s.Down)} }

// serveStreams runs a server of random streams in a pod. The test does not end
// before it has checked what its clients have sent.
func serveStreams(t *testing.T, m *e2e.Mesh, pod, address string) {
	t.Helper()
	var serving sync.WaitGroup
	m.Serve(pod, address, func(c *net.TCPConn) {
		serving.Add(1)
		defer serving.Done()
		_ = c.SetDeadline(time.Now().Add(bulkPatience))
		var s streams
		if err := binary.Read(c, binary.BigEndian, &s); err != nil {
			t.Errorf("%s reads which streams to carry: %v", pod, err)
			return
		}
		if err := talk(c, s.down(), s.up()); err != nil {
			t.Errorf("at %s, connection %d: %v", pod, s.Seed, err)
		}
	})
	t.Cleanup(serving.Wait) // before the server is closed
}

// begin is the first thing that a client of serveStreams says.
func (s streams) begin(c *net.TCPConn) error {
	_ = c.SetDeadline(time.Now().Add(bulkPatience))
	return binary.Write(c, binary.BigEndian, s)
}

// carry opens connections from pods in turn to addresses in turn, all of them
// before the first carries more than the beginning of its streams.
func carry(t *testing.T, m *e2e.Mesh, connections int, size uint64, pods, addresses []string) {
	t.Helper()
	var opened, done errgroup.Group
	var all sync.WaitGroup
	all.Add(connections)
	opened.SetLimit(50)
	for i := range connections {
		opened.Go(func() error {
			pod, to := pods[i%len(pods)], addresses[i%len(addresses)]
			s := streams{Seed: uint64(i), Up: size, Down: size}
			c, err := m.Dial(pod, to)
			if err == nil {
				err = s.begin(c)
			}
			all.Done()
			if err != nil {
				return fmt.Errorf("connection %d from %s to %s: %w", i, pod, to, err)
			}
			done.Go(func() error {
				all.Wait()
				if err := talk(c, s.up(), s.down()); err != nil {
					return fmt.Errorf("at the client, connection %d from %s to %s: %w", i, pod, to, err)
				}
				return nil
			})
			return nil
		})
	}
	if err := errors.Join(opened.Wait(), done.Wait()); err != nil {
		t.Error(err)
	}
}

const (
	serverPod = "mesh/server"
	nearPod   = "mesh/near"
	serverTo  = "198.18.2.10:8080"
	nearTo    = "198.18.1.20:8080"
	serverTo6 = "[fd00:7ac1:2::10]:8080"
	nearTo6   = "[fd00:7ac1:1::20]:8080"
)

// Connections beside each other, across nodes and within one, in both
// families, by pod and by service, each carry their own bytes both ways and
// leave nothing behind.
func TestLongConnections(t *testing.T) {
	m := e2e.Start(t)
	serveStreams(t, m, serverPod, ":8080")
	serveStreams(t, m, nearPod, ":8080")
	to := []string{serverTo, nearTo, serverTo6, nearTo6, "198.18.100.1:80", "198.18.100.2:80"}
	carry(t, m, len(to), 1<<10, []string{"mesh/client"}, to)
	before := usage(t, m)

	carry(t, m, 500, 256<<10, []string{"mesh/client", "mesh/twin", "mesh/client", "mesh/client", "mesh/twin"}, to)
	carry(t, m, 4, 64<<20, []string{"mesh/client"}, []string{serverTo, nearTo})
	before.returns(t, m)
}
