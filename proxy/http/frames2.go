package http

import (
	"bytes"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/h2"
)

const (
	maxHeaderList = 64 << 10
	maxFrame      = 48 << 10 // a padded one must fit the largest buffer
)

// frames2 reads the frames that come from one side. DATA is passed on as it
// comes; of other frames a whole one is waited for.
type frames2 struct {
	from     *reader
	source   bytes.Reader
	parser   *http2.Framer
	block    h2.Block
	blockID  uint32
	settled  bool // the first SETTINGS have come
	data     dataFrame
	nuisance h2.Allowance
	// paid is how many further frames the other side's DATA has called for,
	// and pays counts them for the other side: windows and PING.
	paid, pays *atomic.Int64
}

// dataFrame is a DATA frame that is being passed on.
type dataFrame struct {
	id   uint32
	left int // bytes to come
	end  bool
}

// h2Error ends the connection; the side that caused it is told the code.
type h2Error struct {
	code http2.ErrCode
	text string
}

func (e *h2Error) Error() string { return fmt.Sprintf("%s (%v)", e.text, e.code) }

func protocolError(format string, args ...any) error {
	return &h2Error{http2.ErrCodeProtocol, fmt.Sprintf(format, args...)}
}

func (f *frames2) init(from *reader, paid, pays *atomic.Int64) {
	f.from, f.paid, f.pays = from, paid, pays
	f.parser = http2.NewFramer(nil, &f.source)
	f.parser.SetMaxReadFrameSize(maxFrame)
	f.parser.SetReuseFrames()
	f.block.Init(maxHeaderList)
	// Windows, PING and SETTINGS are passed on; what is useful earns more.
	f.nuisance = h2.NewAllowance(10000, 1000)
}

// handler2 takes the frames of one side.
type handler2 interface {
	// onData takes a part of a DATA frame: b[from:] behind room for its frame
	// header; end is END_STREAM of the last part. padded is a whole frame
	// with its padding.
	onData(id uint32, b []byte, from int, end, padded bool) error
	onHeaders(id uint32, m h2.Message) error
	onFrame(http2.Frame) error
	// idle is called before waiting for more.
	idle() error
}

// run reads frames until the side ends.
func (f *frames2) run(h handler2) error {
	for {
		more, err := f.step(h)
		if err != nil {
			return err
		}
		if more {
			continue
		}
		if err := h.idle(); err != nil {
			return err
		}
		if err := f.from.fill(); err != nil {
			return err
		}
	}
}

// step handles one frame, or what there is of DATA; false if it needs more.
func (f *frames2) step(h handler2) (bool, error) {
	if f.data.left > 0 {
		return f.moreData(h)
	}
	b := f.from.bytes()
	if len(b) < frameHeader {
		return false, nil
	}
	length := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	kind, flags := http2.FrameType(b[3]), http2.Flags(b[4])
	id := (uint32(b[5])<<24 | uint32(b[6])<<16 | uint32(b[7])<<8 | uint32(b[8])) & (1<<31 - 1)
	switch {
	case !f.settled && kind != http2.FrameSettings:
		return false, protocolError("%v before SETTINGS", kind)
	case length > maxFrame || kind != http2.FrameData && length > headerFragment:
		return false, &h2Error{http2.ErrCodeFrameSize, "oversized frame"}
	case f.block.Open() && (kind != http2.FrameContinuation || id != f.blockID):
		return false, protocolError("%v within a header block", kind)
	case kind == http2.FrameData && !flags.Has(http2.FlagDataPadded):
		return f.startData(h, id, length, flags.Has(http2.FlagDataEndStream))
	case len(b) < frameHeader+length:
		return false, nil
	}
	f.settled = true
	whole := b[:frameHeader+length]
	var err error
	if kind == http2.FrameData {
		err = f.paddedData(h, id, flags.Has(http2.FlagDataEndStream), length)
	} else {
		err = f.control(h, whole)
	}
	f.from.skip(len(whole))
	return true, err
}

func (f *frames2) startData(h handler2, id uint32, length int, end bool) (bool, error) {
	if id == 0 {
		return false, protocolError("DATA without a stream")
	}
	f.from.r += frameHeader // within the buffer: its bytes are needed for the header to send
	f.data = dataFrame{id: id, left: length, end: end}
	if length > 0 {
		f.nuisance.Earn()
		f.pays.Add(2 + int64(length)/512)
		return f.moreData(h)
	}
	if !end && !f.nuisance.Spend() {
		return false, &h2Error{http2.ErrCodeEnhanceYourCalm, "empty DATA frames"}
	}
	err := h.onData(id, f.from.buf.B[:f.from.r], f.from.r, end, false)
	f.from.skip(0)
	return true, err
}

func (f *frames2) moreData(h handler2) (bool, error) {
	n := min(f.data.left, len(f.from.bytes()))
	if n == 0 {
		f.from.skip(0)
		return false, nil
	}
	f.data.left -= n
	err := h.onData(f.data.id, f.from.buf.B[:f.from.r+n], f.from.r, f.data.end && f.data.left == 0, false)
	f.from.skip(n)
	return true, err
}

func (f *frames2) paddedData(h handler2, id uint32, end bool, length int) error {
	b := f.from.buf.B
	at := f.from.r + frameHeader
	if id == 0 || length == 0 || int(b[at]) >= length {
		return protocolError("malformed padding of DATA")
	}
	f.nuisance.Earn()
	f.pays.Add(2 + int64(length)/512)
	return h.onData(id, b[:at+length], at, end, true)
}

// control handles a whole frame that is not DATA.
func (f *frames2) control(h handler2, whole []byte) error {
	f.source.Reset(whole)
	frame, err := f.parser.ReadFrame()
	if err != nil {
		var stream http2.StreamError
		var connection http2.ConnectionError
		switch {
		case errors.As(err, &stream):
			return &h2Error{stream.Code, "malformed frame"}
		case errors.As(err, &connection):
			return &h2Error{http2.ErrCode(connection), "malformed frame"}
		}
		return protocolError("malformed frame: %v", err)
	}
	switch frame := frame.(type) {
	case *http2.HeadersFrame:
		f.block.Begin(frame.StreamEnded())
		f.blockID = frame.StreamID
		return f.fragment(h, frame.HeaderBlockFragment(), frame.HeadersEnded())
	case *http2.ContinuationFrame:
		return f.fragment(h, frame.HeaderBlockFragment(), frame.HeadersEnded())
	case *http2.PushPromiseFrame:
		return protocolError("PUSH_PROMISE")
	}
	if !f.spend() {
		return &h2Error{http2.ErrCodeEnhanceYourCalm, "flood of " + frame.Header().Type.String()}
	}
	return h.onFrame(frame)
}

// spend reports whether one more frame that carries nothing is welcome.
func (f *frames2) spend() bool {
	if f.paid.Add(-1) >= 0 {
		return true
	}
	f.paid.Add(1)
	return f.nuisance.Spend()
}

func (f *frames2) fragment(h handler2, fragment []byte, last bool) error {
	done, err := f.block.Add(fragment, last)
	switch {
	case errors.Is(err, h2.ErrFlood):
		return &h2Error{http2.ErrCodeEnhanceYourCalm, err.Error()}
	case err != nil:
		return &h2Error{http2.ErrCodeCompression, err.Error()}
	case !done:
		return nil
	}
	f.nuisance.Earn()
	return h.onHeaders(f.blockID, f.block.Take())
}

// putData writes the header of a DATA frame in front of b[from:].
func putData(b []byte, from int, id uint32, end, padded bool) {
	n := len(b) - from
	h := b[from-frameHeader : from]
	h[0], h[1], h[2] = byte(n>>16), byte(n>>8), byte(n)
	h[3], h[4] = byte(http2.FrameData), 0
	if end {
		h[4] |= byte(http2.FlagDataEndStream)
	}
	if padded {
		h[4] |= byte(http2.FlagDataPadded)
	}
	h[5], h[6], h[7], h[8] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
}
