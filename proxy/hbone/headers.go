package hbone

import (
	"fmt"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// headerBlock assembles HEADERS and CONTINUATION and decodes them.
type headerBlock struct {
	decoder *hpack.Decoder
	limit   int // of the decoded list, as RFC 9113 section 6.5.2 counts it

	part   []byte // fragments before the last one
	frames int
	end    bool // END_STREAM

	fields    []Header
	size      int
	malformed string
}

// maxContinuations is more than a full header list needs.
const maxContinuations = 16

func (b *headerBlock) init(server bool) {
	b.limit = clientHeaderList
	if server {
		b.limit = serverHeaderList
	}
	b.decoder = hpack.NewDecoder(headerTable, b.emit)
	b.decoder.SetMaxStringLength(b.limit)
}

// emit takes one decoded field. Fields beyond the limit are dropped, yet the
// block is decoded to its end: the compression state belongs to the connection.
func (b *headerBlock) emit(f hpack.HeaderField) {
	b.size += int(f.Size())
	switch {
	case b.size > b.limit:
		b.decoder.SetEmitEnabled(false)
	case f.IsPseudo() && len(b.fields) > 0 && !strings.HasPrefix(b.fields[len(b.fields)-1].Name, ":"):
		b.malformed = "pseudo header behind others"
	case !f.IsPseudo() && (!httpguts.ValidHeaderFieldName(f.Name) || strings.ToLower(f.Name) != f.Name):
		b.malformed = "invalid header name"
	case !httpguts.ValidHeaderFieldValue(f.Value):
		b.malformed = "invalid value of header " + f.Name
	default:
		b.fields = append(b.fields, Header{f.Name, f.Value})
	}
}

// add takes a fragment; done when it was the last one.
func (b *headerBlock) add(fragment []byte, last bool) (done bool, err error) {
	b.frames++
	if b.frames > maxContinuations || len(b.part)+len(fragment) > b.limit {
		return false, &connError{http2.ErrCodeEnhanceYourCalm, CauseHeaderFlood, "header block without end"}
	}
	if !last {
		b.part = append(b.part, fragment...)
		return false, nil
	}
	if len(b.part) > 0 {
		fragment = append(b.part, fragment...)
	}
	b.decoder.SetEmitEnabled(true)
	if _, err = b.decoder.Write(fragment); err == nil {
		err = b.decoder.Close()
	}
	if err != nil {
		return false, &connError{http2.ErrCodeCompression, CauseCompression, fmt.Sprintf("header block: %v", err)}
	}
	return true, nil
}

// take returns the decoded list and forgets it.
func (b *headerBlock) take() message {
	m := message{fields: b.fields, end: b.end, malformed: b.malformed, tooLarge: b.size > b.limit}
	b.part, b.frames, b.fields, b.size, b.malformed = nil, 0, nil, 0, ""
	return m
}

// message is a header list as it came.
type message struct {
	fields    []Header
	end       bool   // END_STREAM
	malformed string // what is wrong with it
	tooLarge  bool
}

// onBlock handles a part of a header block of a stream.
func (c *conn) onBlock(id uint32, fragment []byte, last, end, first bool) error {
	if first {
		c.assembly.end = end
	}
	done, err := c.assembly.add(fragment, last)
	if !done || err != nil {
		return err
	}
	m := c.assembly.take()
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
		if !c.nuisance.spend() {
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
