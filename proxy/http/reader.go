package http

import (
	"bytes"
	"io"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

const (
	// maxHead is what a head may have, its empty line included; most servers
	// take less.
	maxHead = 60 << 10
	// headTimeout is how long a head may take from its first byte on.
	headTimeout = 30 * time.Second
)

// reader is what has come from a side and was not passed on yet. It has a
// buffer only while there are bytes in it.
type reader struct {
	side     Side
	buf      *relay.Buffer
	r, w     int // unread bytes are buf.B[r:w]
	appetite relay.Appetite
	err      error // the end of the side, which stays
}

// bytes are those that have come.
func (r *reader) bytes() []byte {
	if r.buf == nil {
		return nil
	}
	return r.buf.B[r.r:r.w]
}

// await returns once something has come.
func (r *reader) await() error {
	if r.r < r.w {
		return nil
	}
	return r.fill()
}

// fill waits for more.
func (r *reader) fill() error {
	if r.err == nil {
		r.err = r.read()
	}
	return r.err
}

func (r *reader) read() error {
	if r.r == r.w {
		r.drop()
	}
	if r.buf == nil {
		buf, n, err := r.side.Read(r.appetite.Class(), headRoom, relay.LargeSize)
		if err != nil {
			return err
		}
		r.appetite.Fed(n, len(buf.B)-headRoom)
		r.buf, r.r, r.w = buf, headRoom, headRoom+n
		return nil
	}
	if r.w == len(r.buf.B) {
		r.makeRoom()
	}
	more, n, err := r.side.Read(relay.Small, 0, len(r.buf.B)-r.w)
	if err != nil {
		return err
	}
	copy(r.buf.B[r.w:], more.B[:n])
	more.Free()
	r.w += n
	return nil
}

// makeRoom moves what there is to the beginning, of a larger buffer if there
// is a lot.
func (r *reader) makeRoom() {
	old := r.buf
	if r.w-r.r > len(old.B)/2 && len(old.B) < relay.LargeSize {
		r.buf = relay.Get(relay.Large)
	}
	n := copy(r.buf.B[headRoom:], old.B[r.r:r.w])
	r.r, r.w = headRoom, headRoom+n
	if r.buf != old {
		old.Free()
	}
}

// skip forgets n bytes, which were passed on.
func (r *reader) skip(n int) {
	r.r += n
	if r.r == r.w {
		r.drop()
	}
}

func (r *reader) drop() {
	if r.buf != nil {
		r.buf.Free()
		r.buf, r.r, r.w = nil, 0, 0
	}
}

// pass sends the first n bytes to the other side and forgets them.
func (r *reader) pass(n int, to Side) error {
	if n == 0 {
		return nil
	}
	err := to.Send(r.buf.B[:r.r+n], r.r, r.side.Err)
	r.skip(n)
	return err
}

// head waits for a whole head, whose length it returns. The end of the side in
// front of one is io.EOF, within one io.ErrUnexpectedEOF.
func (r *reader) head() (int, error) {
	if err := r.await(); err != nil {
		return 0, err
	}
	var slow *time.Timer
	defer func() {
		if slow != nil {
			slow.Stop()
		}
	}()
	line, seen, skipped := 0, 0, false
	for {
		b := r.bytes()
		for {
			i := bytes.IndexByte(b[seen:], '\n')
			if i < 0 {
				break
			}
			end := seen + i
			switch {
			case end == 0 || b[end-1] != '\r':
				return 0, malformed(400, "a line that does not end with CR LF")
			case end > 1 && end-1 == line:
				return end + 1, nil
			case end == 1 && skipped:
				return 0, malformed(400, "empty lines in front of a message")
			case end == 1: // RFC 9112 section 2.2 has one ignored
				r.skip(2)
				skipped = true
				if err := r.await(); err != nil {
					return 0, err
				}
				b, line, seen = r.bytes(), 0, 0
				continue
			}
			line, seen = end+1, end+1
		}
		seen = len(b)
		if len(b) >= maxHead {
			return 0, malformed(431, "a header larger than 60 KiB")
		}
		if slow == nil {
			slow = time.AfterFunc(headTimeout, r.side.Reset)
		}
		if err := r.fill(); err != nil {
			if err == io.EOF { //nolint:errorlint // returned as it is
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
	}
}
