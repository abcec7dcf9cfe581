package hbone

import (
	"errors"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/tacit-mesh/tacit/proxy/h2"
)

// headerLimit is how much of a header list is taken.
func headerLimit(server bool) int {
	if server {
		return serverHeaderList
	}
	return clientHeaderList
}

// message is a header list as it came.
type message struct {
	fields    []Header
	end       bool   // END_STREAM
	malformed string // what is wrong with it
	tooLarge  bool
}

func messageOf(m h2.Message) message {
	fields := make([]Header, len(m.Fields))
	for i, f := range m.Fields {
		fields[i] = Header{f.Name, f.Value}
	}
	return message{fields: fields, end: m.End, malformed: m.Malformed, tooLarge: m.TooLarge}
}

// onBlock handles a part of a header block of a stream.
func (c *conn) onBlock(id uint32, fragment []byte, last, end, first bool) error {
	if first {
		c.assembly.Begin(end)
	}
	done, err := c.assembly.Add(fragment, last)
	switch {
	case errors.Is(err, h2.ErrFlood):
		return &connError{http2.ErrCodeEnhanceYourCalm, CauseHeaderFlood, err.Error()}
	case err != nil:
		return &connError{http2.ErrCodeCompression, CauseCompression, err.Error()}
	case !done:
		return nil
	}
	m := messageOf(c.assembly.Take())
	c.mu.Lock()
	s := c.streams[id]
	known := !c.idle(id)
	c.mu.Unlock()
	switch {
	case s != nil && c.server == nil && !s.answered.Load():
		return s.onAnswer(m)
	case s != nil: // trailers
		if !m.end || m.malformed != "" {
			s.violated(http2.ErrCodeProtocol)
			return nil
		}
		s.remoteFIN()
		return nil
	case known:
		if !c.nuisance.Spend() {
			return &connError{http2.ErrCodeEnhanceYourCalm, CauseProtocol, "HEADERS on closed streams"}
		}
		return nil // it was reset by this end, or refused
	case c.server == nil:
		return protocolError("HEADERS on idle stream %d", id)
	default:
		return c.server.open(c, id, m)
	}
}

// writeHeaders collects a header list. Called with mu held.
func (c *conn) writeHeaders(id uint32, fields []Header, end bool) {
	if c.done || c.last {
		return
	}
	c.block.Reset()
	for _, f := range fields {
		_ = c.encoder.WriteField(hpack.HeaderField{Name: f.Name, Value: f.Value, Sensitive: !repeats(f.Name)})
	}
	p := c.block.Bytes()
	part := p[:min(len(p), c.peer.frame)]
	p = p[len(part):]
	_ = c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: part, EndStream: end, EndHeaders: len(p) == 0})
	for len(p) > 0 {
		part = p[:min(len(p), c.peer.frame)]
		p = p[len(part):]
		_ = c.framer.WriteContinuation(id, len(p) == 0, part)
	}
}

// repeats tells headers whose value later streams will repeat; the others
// would only push these out of the compression table, and some are secrets.
func repeats(name string) bool {
	return name == "baggage" || strings.HasPrefix(name, ":")
}
