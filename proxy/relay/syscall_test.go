package relay

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// countBulk has it counted how often bulk is said, of this test's goroutines.
func countBulk(t *testing.T) *atomic.Int64 {
	said, before := new(atomic.Int64), sayBulk
	sayBulk = func() { said.Add(1) }
	t.Cleanup(func() { sayBulk = before })
	return said
}

// What comes without a pause is bulk, and what comes in pieces is not, however
// much it is.
func TestReaderSaysBulk(t *testing.T) {
	said := countBulk(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		t.Cleanup(func() { unix.Close(fd) })
	}
	var r Reader
	p := make([]byte, 32<<10)
	pass := func() {
		if _, err := unix.Write(fds[0], p); err != nil {
			t.Fatal(os.NewSyscallError("write", err))
		}
		if _, err := r.Read(fds[1], p); err != nil {
			t.Fatal(os.NewSyscallError("read", err))
		}
	}
	for range 2 * bulk / len(p) {
		pass()
		if _, err := r.Read(fds[1], p); !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
	}
	if n := said.Load(); n != 0 {
		t.Errorf("said %d times of pieces", n)
	}
	for range 2 * bulk / len(p) {
		pass()
	}
	if n := said.Load(); n != 2 {
		t.Errorf("said %d times of twice as many bytes as are bulk", n)
	}
}

// So is what passes through the kernel alone.
func TestSplicedBulkIsSaid(t *testing.T) {
	said := countBulk(t)
	for range 100 { // the reader may be faster than the writer
		client, server, done := setup(t.Context(), t)
		go send(t, server, client, 0)
		send(t, client, server, 20<<20)
		within(t, done)
		if said.Load() > 0 {
			return
		}
	}
	t.Error("2 GB were never said to be bulk")
}
