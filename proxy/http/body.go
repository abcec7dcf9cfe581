package http

import (
	"bytes"
	"strings"
)

type bodyKind uint8

const (
	bodyNone bodyKind = iota
	bodyLength
	bodyChunked
	bodyUntilEnd // of the connection
)

// body finds where a body ends, without holding any of it.
type body struct {
	kind   bodyKind
	strict bool  // of a request: trailers must not pass for the header
	left   int64 // of the length, or of the chunk under way

	// content, unless nil, gets what the body consists of.
	content func([]byte)

	// own are names that trailers must not have, and names those that they had.
	own, names []string

	stage    chunkStage
	overhead int // bytes of chunk extensions, chunk data makes up for them
	trailers int // bytes
}

type chunkStage uint8

const (
	chunkSize chunkStage = iota
	chunkData
	chunkEnd // CR LF behind the data
	chunkTrailers
)

const (
	maxChunkLine = 4 << 10
	maxTrailers  = 16 << 10
	// maxOverhead is how much may be spent on chunk extensions beyond a
	// sixteenth of the data.
	maxOverhead = 16 << 10
)

// scan looks at what has come and returns how many bytes of it belong to the
// body and are good; done when the body ends with them. It leaves an
// incomplete line of a chunked body for the next time.
func (b *body) scan(p []byte) (n int, done bool, err error) {
	switch b.kind {
	case bodyNone:
		return 0, true, nil
	case bodyUntilEnd:
		return len(p), false, nil
	case bodyLength:
		n = int(min(int64(len(p)), b.left))
		b.left -= int64(n)
		b.pass(p[:n])
		return n, b.left == 0, nil
	case bodyChunked:
	}
	for {
		took, last, err := b.scanChunk(p[n:])
		n += took
		if err != nil || last {
			return n, last, err
		}
		if took == 0 {
			return n, false, nil
		}
	}
}

func (b *body) pass(p []byte) {
	if b.content != nil {
		b.content(p)
	}
}

// scanChunk takes one line or what there is of one chunk's data.
func (b *body) scanChunk(p []byte) (n int, done bool, err error) {
	if b.stage == chunkData {
		n = int(min(int64(len(p)), b.left))
		b.left -= int64(n)
		b.overhead = max(0, b.overhead-n/16)
		b.pass(p[:n])
		if b.left == 0 {
			b.stage = chunkEnd
		}
		return n, false, nil
	}
	i := bytes.IndexByte(p, '\n')
	if i < 0 {
		if len(p) > maxChunkLine || b.stage == chunkEnd && len(p) > 1 {
			return 0, false, malformed(400, "a line without end in a chunked body")
		}
		return 0, false, nil
	}
	if i == 0 || p[i-1] != '\r' {
		return 0, false, malformed(400, "a line of a chunked body that does not end with CR LF")
	}
	text := p[:i-1]
	switch b.stage {
	case chunkSize:
		err = b.startChunk(text)
	case chunkEnd:
		if len(text) > 0 {
			err = malformed(400, "a chunk longer than its size")
		}
		b.stage = chunkSize
	case chunkTrailers:
		if len(text) == 0 {
			return i + 1, true, nil
		}
		err = b.trailer(text)
	case chunkData:
	}
	if err != nil {
		return 0, false, err
	}
	return i + 1, false, nil
}

// startChunk reads "SIZE[;EXTENSION]": hexadecimal digits, nothing in front or
// between.
func (b *body) startChunk(text []byte) error {
	digits, extension, extended := bytes.Cut(text, []byte{';'})
	if len(digits) == 0 || len(digits) > 15 {
		return malformed(400, "an invalid chunk size")
	}
	var size int64
	for _, c := range digits {
		d := strings.IndexByte("0123456789abcdef", c|0x20)
		if d < 0 || c < '0' {
			return malformed(400, "an invalid chunk size")
		}
		size = size<<4 | int64(d)
	}
	if extended {
		b.overhead += len(extension)
		if b.overhead > maxOverhead || !isValue(string(extension)) {
			return malformed(400, "an invalid or excessive chunk extension")
		}
	}
	b.left, b.stage = size, chunkData
	if size == 0 {
		b.stage = chunkTrailers
	}
	return nil
}

// decisive fields must be in the header: some servers merge trailers into it,
// and nothing was decided on these.
var decisive = map[string]bool{
	"host": true, "content-length": true, "transfer-encoding": true, "connection": true, "upgrade": true,
	"authorization": true, "cookie": true, "content-type": true, "content-encoding": true, "te": true,
	"expect": true, "x-forwarded-for": true, "x-forwarded-host": true, "x-forwarded-proto": true, "forwarded": true,
	"x-forwarded-client-cert": true,
}

// isDecisive takes "_" for "-", as some applications do.
func isDecisive(name string) bool {
	return decisive[strings.ReplaceAll(strings.ToLower(name), "_", "-")]
}

func (b *body) trailer(text []byte) error {
	b.trailers += len(text) + 2
	if b.trailers > maxTrailers {
		return malformed(431, "trailers larger than 16 KiB")
	}
	f, err := fieldLine(string(text))
	if err != nil || !b.strict {
		return err
	}
	b.names = append(b.names, f.Name)
	return b.checkTrailer(f.Name)
}

// reserve says which names trailers must not have, also those that have come.
func (b *body) reserve(own []string) error {
	b.own = own
	for _, name := range b.names {
		if err := b.checkTrailer(name); err != nil {
			return err
		}
	}
	return nil
}

func (b *body) checkTrailer(name string) error {
	if isDecisive(name) || isOwn(b.own, name) {
		return malformed(400, "a trailer %.64s, which belongs into the header", name)
	}
	return nil
}
