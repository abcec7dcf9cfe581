package relay

import (
	"errors"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// errNoPipe says that the kernel has no pipe for us: buffers serve as well.
var errNoPipe = errors.New("no pipe to splice through")

// pipe holds bytes inside the kernel between two sockets.
type pipe struct {
	r, w int
	held int // bytes inside
}

// pipeSize is asked for, not needed; the kernel's default is 64 KB.
const pipeSize = 1 << 20

// pipes keeps empty ones; those that the garbage collector takes are closed.
var pipes sync.Pool

func getPipe() (*pipe, error) {
	if p, ok := pipes.Get().(*pipe); ok {
		return p, nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, errNoPipe
	}
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	p := &pipe{r: fds[0], w: fds[1]}
	runtime.SetFinalizer(p, (*pipe).close)
	return p, nil
}

func (p *pipe) put() {
	if p.held == 0 {
		pipes.Put(p)
		return
	}
	p.close() // never hand one connection's bytes to another
}

func (p *pipe) close() {
	runtime.SetFinalizer(p, nil)
	unix.Close(p.r)
	unix.Close(p.w)
}

// splice moves bytes without copying them, until src has none left for now.
func (f *flow) splice() error {
	p, err := getPipe()
	if err != nil {
		return err
	}
	defer p.put()
	drain := func(dst uintptr) bool { return f.fromPipe(p, int(dst)) }
	for {
		n, err := f.toPipe(p)
		if err != nil || n == 0 { // empty or FIN: the read that follows tells which
			return err
		}
		f.src.reader.found(n)
		f.dst.write = writing{}
		if err := f.dst.flush(drain, f.src.Err); err != nil {
			return err
		}
		if err := f.counts.more(f.count, n); err != nil || f.counts.metered() {
			return err
		}
	}
}

func (f *flow) toPipe(p *pipe) (moved int, err error) {
	cause := f.src.raw.Control(func(src uintptr) {
		var n int64
		n, err = spliceOnce(int(src), p.w, pipeSize)
		moved = int(n)
		p.held += moved
	})
	if cause != nil {
		return 0, cause
	}
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		return 0, os.NewSyscallError("splice", err)
	}
	return moved, nil
}

func (f *flow) fromPipe(p *pipe, dst int) bool {
	for p.held > 0 {
		n, err := spliceOnce(p.r, dst, p.held)
		if errors.Is(err, unix.EAGAIN) {
			return false
		}
		if err != nil {
			f.dst.write.err = os.NewSyscallError("splice", err)
			return true
		}
		p.held -= int(n)
	}
	return true
}

func spliceOnce(from, to, size int) (int64, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, size, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		return max(n, 0), err
	}
}
