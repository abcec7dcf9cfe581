package h2

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// TableSize is the compression state of a connection, one direction, in bytes.
const TableSize = 4096

// maxContinuations is more than a full header list needs.
const maxContinuations = 16

// The ways in which a header block ends a connection.
var (
	ErrFlood       = errors.New("header block without end")
	ErrCompression = errors.New("header block that cannot be decoded")
)

// Block assembles HEADERS and CONTINUATION and decodes them.
type Block struct {
	decoder *hpack.Decoder
	limit   int // of the decoded list, as RFC 9113 section 6.5.2 counts it

	part   []byte // fragments before the last one
	frames int
	end    bool // END_STREAM

	fields    []hpack.HeaderField
	size      int
	malformed string
}

// Init prepares for lists of at most limit bytes.
func (b *Block) Init(limit int) {
	b.limit = limit
	b.decoder = hpack.NewDecoder(TableSize, b.emit)
	b.decoder.SetMaxStringLength(b.limit)
}

// Begin starts a block; end is HEADERS' END_STREAM.
func (b *Block) Begin(end bool) { b.end = end }

// Open reports whether CONTINUATION must follow.
func (b *Block) Open() bool { return b.frames > 0 }

// emit takes one decoded field. Fields beyond the limit are dropped, yet the
// block is decoded to its end: the compression state belongs to the connection.
func (b *Block) emit(f hpack.HeaderField) {
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
		b.fields = append(b.fields, f)
	}
}

// Add takes a fragment; done when it was the last one. An error, one of those
// above, ends the connection.
func (b *Block) Add(fragment []byte, last bool) (done bool, err error) {
	b.frames++
	if b.frames > maxContinuations || len(b.part)+len(fragment) > b.limit {
		return false, ErrFlood
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
		return false, fmt.Errorf("%w: %w", ErrCompression, err)
	}
	return true, nil
}

// Take returns the decoded list and forgets it.
func (b *Block) Take() Message {
	m := Message{Fields: b.fields, End: b.end, Malformed: b.malformed, TooLarge: b.size > b.limit}
	b.part, b.frames, b.fields, b.size, b.malformed = nil, 0, nil, 0, ""
	return m
}

// Message is a header list as it came.
type Message struct {
	Fields    []hpack.HeaderField
	End       bool   // END_STREAM
	Malformed string // what is wrong with it
	TooLarge  bool
}

// Value returns the first value of name, or "".
func (m *Message) Value(name string) string {
	for i := range m.Fields {
		if m.Fields[i].Name == name {
			return m.Fields[i].Value
		}
	}
	return ""
}
