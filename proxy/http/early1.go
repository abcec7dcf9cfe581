package http

import (
	"strings"
	"time"
)

// bodyTimeout is how long the part of a body may take that a decision looks at.
const bodyTimeout = 30 * time.Second

// early1 is what was read of a request of HTTP/1 in front of its decision.
type early1 struct {
	Content
	taken bool   // the head is out of the reader's buffer
	raw   []byte // of the body, as it came
	room  int    // that the gate has found for it
}

// free gives the room back.
func (e *early1) free(gate Exchange) {
	if e.room > 0 {
		gate.Free(e.room)
	}
	*e = early1{taken: e.taken}
}

// collect reads as much of the body as the decision wants, behind a head that
// is the next n bytes. Whoever waits to be asked for the body is.
func (c *conn1) collect(n int, gate Exchange) (e early1, err error) {
	b := &c.head.body
	if b.kind == bodyNone {
		e.Whole = true
		return e, nil
	}
	wants := gate.Wants()
	if wants <= 0 {
		return e, nil
	}
	c.client.skip(n)
	e.taken = true
	if c.request.Minor > 0 && expects(c.request.Fields) {
		proceed := append(make([]byte, headRoom, 64), "HTTP/1.1 100 Continue\r\n\r\n"...)
		if err := c.client.side.Send(proceed, headRoom, c.app.side.Err); err != nil {
			return e, err
		}
	}
	slow := time.AfterFunc(bodyTimeout, c.client.side.Reset)
	defer slow.Stop()
	framed := b.kind == bodyChunked // else what comes is the content
	if framed {
		b.content = func(p []byte) { e.Bytes = append(e.Bytes, p...) }
		defer func() { b.content = nil }()
	}
	for {
		n, done, err := b.scan(c.client.bytes())
		if err != nil {
			return e, err
		}
		e.raw = append(e.raw, c.client.bytes()[:n]...)
		c.client.skip(n)
		if !framed {
			e.Bytes = e.raw
		}
		size := len(e.raw)
		if framed {
			size += len(e.Bytes)
		}
		if !gate.Hold(size - e.room) {
			e.Content = Content{NoRoom: true}
			return e, nil
		}
		e.room = size
		switch {
		case done:
			b.kind = bodyNone // of what is still to be read
			e.Whole = len(e.Bytes) <= wants
			e.Bytes = e.Bytes[:min(len(e.Bytes), wants)]
			return e, nil
		case len(e.Bytes) >= wants:
			e.Bytes = e.Bytes[:wants]
			return e, nil
		}
		if err := c.client.fill(); err != nil {
			return e, err
		}
	}
}

// expects reports whether a client waits for 100 before it sends the body.
func expects(fields []Field) bool {
	r := Request{Fields: fields}
	value, _ := r.Header("expect")
	return strings.EqualFold(value, "100-continue")
}
