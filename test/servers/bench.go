package servers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/world"
)

// bench is where the programs of a server run, and what belongs to one test.
type bench struct {
	t   testing.TB
	dir string // of their files; gone at the end of the test
}

// patience bounds the waits for a server on a busy machine.
const patience = 90 * time.Second

func newBench(t testing.TB, name string) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", name) //nolint:usetesting // a test's own directory has too long a name for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &bench{t: t, dir: dir}
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }
func (b *bench) write(name, text string) { b.must(os.WriteFile(b.path(name), []byte(text), 0o600)) }

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// launch starts a program under a name of its own. It ends with the test; if
// that has failed, the end of what the program said is shown.
func (b *bench) launch(name, program string, args ...string) *world.Program {
	b.t.Helper()
	log := b.path(name + ".log")
	p, err := world.Launch(name, log, exec.CommandContext(context.Background(), program, args...))
	b.must(err)
	b.t.Cleanup(func() {
		_ = p.Kill()
		if text, err := os.ReadFile(log); err == nil && b.t.Failed() {
			b.t.Logf("%s ends with:\n%s", name, text[max(0, len(text)-4000):])
		}
	})
	return p
}

// await polls until check succeeds: a server that is not there yet has no
// event. It fails at once when the program has ended.
func (b *bench) await(p *world.Program, check func(ctx context.Context) error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeoutCause(b.t.Context(), patience, fmt.Errorf("not within %v", patience))
	defer cancel()
	over, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-p.Ended():
			stop(fmt.Errorf("%s has ended", p.Name))
		case <-over.Done():
		}
	}()
	if err := world.Poll(over, func() error { return check(over) }); err != nil {
		b.t.Fatalf("%s does not get ready: %v: %v", p.Name, context.Cause(over), err)
	}
}

// freePorts are n that nobody has at this moment, and that nobody gets for a
// connection that it opens: those begin at 32768.
func freePorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	const first, last = 20000, 32767
	for range 100 * n {
		port := first + rand.IntN(last-first+1)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer func() { _ = l.Close() }() // held until all are found
		if ports = append(ports, port); len(ports) == n {
			return ports
		}
	}
	t.Fatalf("no %d free ports between %d and %d", n, first, last)
	return nil
}
