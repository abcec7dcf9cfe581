package relay

import (
	"errors"
	"io"
	"sync/atomic"
)

// flow carries one direction. Messages pass through a buffer; once reads fill
// the largest buffer, bytes move inside the kernel until the source is empty.
type flow struct {
	src, dst *Socket
	counts   *Counts
	count    *atomic.Int64 // that of the direction
	appetite Appetite
}

// run returns nil once FIN has come from src and was given to dst.
func (f *flow) run() error {
	for {
		buf, n, err := f.src.Read(f.appetite.Class(), 0, sizes[Large], true)
		if errors.Is(err, io.EOF) {
			_ = f.dst.CloseWrite() // fails only where dst is gone, which its own direction tells
			return nil
		}
		if err != nil {
			return err
		}
		room := len(buf.B)
		f.appetite.Fed(n, room)
		err = f.forward(buf.B[:n])
		buf.Free()
		if err != nil {
			return err
		}
		if n == sizes[Large] && !f.counts.metered() { // through the kernel go more than a buffer at a time
			if err := f.splice(); err != nil && !errors.Is(err, errNoPipe) {
				return err
			}
		}
	}
}

// forward writes without waiting, and only what is left over with it: setting
// a deadline costs more than most writes.
func (f *flow) forward(p []byte) error {
	n, err := f.dst.Write(p)
	if err != nil {
		return &writeError{socket: f.dst, err: err}
	}
	if err := f.counts.more(f.count, n); err != nil || n == len(p) {
		return err
	}
	if err := f.dst.WriteAll(p[n:], f.src.Err); err != nil {
		return err
	}
	return f.counts.more(f.count, len(p)-n)
}
