package relay

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/internal/processors"
)

// Around a system call that may block, Go's scheduler prepares to do without
// the calling thread: it wakes its monitor thread, which then looks every 20 µs
// whether to hand the work to another thread. Reads and writes of non-blocking
// sockets need none of this, and for small messages it costs more than the
// calls themselves.

// Reader reads a non-blocking socket.
type Reader struct {
	streak uint8 // reads in a row that found something
	pace   pace
}

// told is how many reads in a row find something before one is announced to
// the scheduler: its monitor thread must be awake when a goroutine is always
// busy, for others to get their turn.
const told = 16

// Read is read(2).
func (r *Reader) Read(fd int, p []byte) (n int, err error) {
	call := read
	if r.streak++; r.streak == told {
		r.streak = 0
		call = unix.Read
	}
	if n, err = retry(fd, p, call); err != nil {
		r.streak, r.pace = 0, pace{}
		return n, err
	}
	r.found(n)
	return n, nil
}

// found notes that the socket had n more bytes.
func (r *Reader) found(n int) {
	if r.pace.bulk(n, sinceStart) {
		processors.Busy()
	}
}

// Write is write(2) to a non-blocking socket. It follows a Read, whose streak
// counts for both.
func Write(fd int, p []byte) (int, error) { return retry(fd, p, write) }

func read(fd int, p []byte) (int, error) { return call(unix.SYS_READ, fd, p) }

func write(fd int, p []byte) (int, error) { return call(unix.SYS_WRITE, fd, p) }

func call(number uintptr, fd int, p []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(number, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// retry runs a read or write again when a signal interrupted it.
func retry(fd int, p []byte, call func(int, []byte) (int, error)) (int, error) {
	for {
		n, err := call(fd, p)
		if err != unix.EINTR { //nolint:errorlint // returned as it is
			return n, err
		}
	}
}

// pace tells bulk, which keeps a goroutine from waiting, from what comes in
// pieces, and from what others take slowly.
type pace struct {
	moved uint32 // bytes that were there without a pause
	begun time.Duration
}

const (
	// To encrypt and send so much takes about a millisecond, or dozens beside
	// others that do the same; if it has taken longer than the time, the goroutine
	// has waited for somebody slow.
	bulkBytes = 256 << 10
	bulkTime  = 100 * time.Millisecond
)

// bulk reports whether n more bytes make it that. The clock is read for what
// may become bulk alone.
func (p *pace) bulk(n int, clock func() time.Duration) bool {
	p.moved += uint32(n)
	switch {
	case p.moved < bulkBytes/4:
		return false
	case p.begun == 0:
		p.begun = clock()
		return false
	case p.moved < bulkBytes:
		return false
	}
	quick := clock()-p.begun < bulkTime
	*p = pace{}
	return quick
}

var start = time.Now()

func sinceStart() time.Duration { return time.Since(start) }
