package http

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/tacit-mesh/tacit/proxy/h2"
)

// stream2 is a request of HTTP/2 and its response.
type stream2 struct {
	Live
	c       *conn2
	id      uint32 // the client's
	gate    Exchange
	request Request
	header  h2.Message
	asked   chan struct{} // closed when the gate has decided, or is not to
	sealed  atomic.Bool   // no more DATA goes to either side

	// Guarded by the connection's mu.
	app       uint32 // the application's id; 0 until it is forwarded
	left      int64  // of Content-Length; -1 without
	clientEnd bool   // END_STREAM has come
	sentEnd   bool   // and was passed on
	appEnd    bool
	status    int
	grpc      int
	allowed   int64 // window for the application, once it has the stream
	flow      account
	credit    int64 // what the client may send
	held      []byte
	lent      int         // of these, what the client may send again on other streams
	room      int         // that the gate has found for these
	trailers  *h2.Message // behind them
	own       []string    // names that trailers must not have
	response  ResponseEdits
	wants     int // bytes of the body that the decision waits for; 0 once it is asked for
	slow      *time.Timer

	once sync.Once
}

// Statuses of gRPC (package codes of grpc).
const (
	grpcPermissionDenied = 7
	grpcExhausted        = 8
	grpcInternal         = 13
	grpcUnavailable      = 14
	grpcUnauthenticated  = 16
)

// GRPCStatus is the status of gRPC for one of HTTP that the proxy answers with.
func GRPCStatus(status int) int {
	switch status {
	case 401:
		return grpcUnauthenticated
	case 403:
		return grpcPermissionDenied
	case 429:
		return grpcExhausted
	case 503:
		return grpcUnavailable
	}
	return grpcInternal
}

// onHeaders handles a request's header, or its trailers.
func (c fromClient) onHeaders(id uint32, m h2.Message) error {
	c.mu.Lock()
	if s := c.byClient[id]; s != nil {
		c.mu.Unlock()
		return c.onTrailers(s, m)
	}
	if id%2 == 0 {
		c.mu.Unlock()
		return protocolError("client opened stream %d", id)
	}
	if id <= c.lastID {
		c.mu.Unlock()
		return nil // trailers of what was refused or reset
	}
	c.lastID = id
	full := len(c.byClient) >= maxStreams
	c.mu.Unlock()
	if full {
		if !c.cancels.Spend() {
			return &h2Error{http2.ErrCodeEnhanceYourCalm, "streams past MAX_CONCURRENT_STREAMS"}
		}
		c.toClient.frame(func(w *http2.Framer) error { return w.WriteRSTStream(id, http2.ErrCodeRefusedStream) })
		return nil
	}
	s := &stream2{c: c.conn2, id: id, header: m, grpc: -1, clientEnd: m.End, asked: make(chan struct{})}
	length, err := parseRequest2(m, &s.request)
	s.left = length
	if err != nil || m.TooLarge {
		c.refuseMalformed(s, err, m.TooLarge)
		return nil
	}
	s.Abort = func() { c.abort(s) }
	c.mu.Lock()
	s.credit = startWindow
	if c.greeted {
		s.credit = undecided
	}
	c.byClient[id] = s
	c.mu.Unlock()
	s.gate = c.gate.Begin(&s.request, &s.Live)
	if !m.End {
		if wants := s.gate.Wants(); wants > 0 {
			c.collect(s, wants)
			return nil
		}
	}
	c.ask(s, Content{Whole: m.End})
	return nil
}

// ask has the gate decide, in a goroutine where that takes time.
func (c *conn2) ask(s *stream2, early Content) {
	if s.gate.Ready() {
		c.decide(s, early)
		return
	}
	go func() {
		c.decide(s, early)
		_ = c.toApp.wake()
		_ = c.toClient.wake()
	}()
}

// refuseMalformed resets a stream whose request could mean different things,
// or answers one whose header is too large.
func (c *conn2) refuseMalformed(s *stream2, err error, tooLarge bool) {
	bad := &MalformedError{Status: 400, Text: "an invalid header of HTTP/2"}
	if err != nil {
		bad.Text = err.Error()
	}
	if tooLarge {
		bad = &MalformedError{Status: 431, Text: "a header larger than 64 KiB"}
	}
	c.gate.Malformed(bad)
	if tooLarge {
		c.answer(s, &Refusal{Status: bad.Status})
		return
	}
	c.toClient.frame(func(w *http2.Framer) error { return w.WriteRSTStream(s.id, http2.ErrCodeProtocol) })
}

// decide forwards or refuses a stream.
func (c *conn2) decide(s *stream2, early Content) {
	decision := s.gate.Decision(early)
	close(s.asked)
	if decision.Refusal == nil && !decision.valid() {
		decision.Refusal = &Refusal{Status: 500, Message: "what is to be added cannot be"}
	}
	c.mu.Lock()
	if c.byClient[s.id] != s { // reset meanwhile
		s.free(s.room)
		c.mu.Unlock()
		return
	}
	if decision.Refusal == nil && s.trailers != nil && !validTrailers(*s.trailers, decision.Own) {
		_ = c.violate(s, http2.ErrCodeProtocol, 0) // gives up mu; there is no error but the stream's
		return
	}
	s.own, s.response = decision.Own, decision.Response
	if decision.Refusal != nil {
		s.status = decision.Refusal.Status
		c.forget(s)
		c.answer(s, decision.Refusal)
		c.mu.Unlock()
		s.over(nil)
		return
	}
	s.app = c.nextApp
	c.nextApp += 2
	c.byApp[s.app] = s
	end := s.header.End
	s.sentEnd = end
	c.toApp.headers(s.app, edited(s.header.Fields, &decision.Edits), end)
	s.header = h2.Message{}
	if s.allowed > 0 {
		c.toApp.frame(func(w *http2.Framer) error { return w.WriteWindowUpdate(s.app, uint32(s.allowed)) })
	}
	over := false
	if !end {
		over = c.start(s)
	}
	c.mu.Unlock()
	if over {
		s.over(nil)
	}
}

// edited is the header as it is forwarded.
func edited(fields []hpack.HeaderField, e *Edits) []hpack.HeaderField {
	if e.empty() {
		return fields
	}
	var out []hpack.HeaderField
	for _, f := range fields {
		switch {
		case f.Name == ":path" && e.Target != "":
			f.Value = e.Target
			out = append(out, f)
		case f.IsPseudo() || e.Fields == nil:
			out = append(out, f)
		}
	}
	for _, f := range e.Fields {
		name := strings.ToLower(f.Name)
		out = append(out, hpack.HeaderField{Name: name, Value: f.Value, Sensitive: name == "authorization" || name == "cookie"})
	}
	return out
}

// answer refuses a stream. It has no body: DATA of ours would take windows
// that only the application keeps account of.
func (c *conn2) answer(s *stream2, refusal *Refusal) {
	fields := []hpack.HeaderField{{Name: ":status", Value: strconv.Itoa(refusal.Status)}}
	if s.request.GRPC() {
		code := refusal.GRPC
		if code == 0 {
			code = GRPCStatus(refusal.Status)
		}
		fields[0].Value = "200"
		fields = append(fields,
			hpack.HeaderField{Name: "content-type", Value: "application/grpc"},
			hpack.HeaderField{Name: "grpc-status", Value: strconv.Itoa(code)},
			hpack.HeaderField{Name: "grpc-message", Value: grpcMessage(refusal.Message + " (" + idField + " " + c.conn.id + ")")})
		s.grpc = code
	} else {
		fields = append(fields, hpack.HeaderField{Name: "content-length", Value: "0"})
	}
	fields = append(fields, hpack.HeaderField{Name: idField, Value: c.conn.id})
	for _, f := range refusal.Fields {
		fields = append(fields, hpack.HeaderField{Name: strings.ToLower(f.Name), Value: f.Value})
	}
	c.toClient.headers(s.id, fields, true)
	if !s.clientEnd {
		c.toClient.frame(func(w *http2.Framer) error { return w.WriteRSTStream(s.id, http2.ErrCodeNo) })
	}
}

// grpcMessage escapes what gRPC does not take in a status message.
func grpcMessage(text string) string {
	var b strings.Builder
	for i := range len(text) {
		if c := text[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			b.WriteString("%" + strings.ToUpper(strconv.FormatUint(uint64(c)|0x100, 16)[1:]))
		}
	}
	return b.String()
}

// onTrailers passes on what follows a request's body.
func (c fromClient) onTrailers(s *stream2, m h2.Message) error {
	c.mu.Lock()
	if c.byClient[s.id] != s {
		c.mu.Unlock()
		return nil
	}
	if s.clientEnd || s.left > 0 || !validTrailers(m, s.own) {
		return c.violate(s, http2.ErrCodeProtocol, 0)
	}
	s.clientEnd, s.trailers = true, &m
	if s.app == 0 {
		c.collected(s) // gives up mu
		return nil
	}
	over := c.release(s)
	c.mu.Unlock()
	if over {
		s.over(nil)
	}
	return nil
}

// validTrailers wants no fields that belong into the header, nor any of the
// names that only the decision may say.
func validTrailers(m h2.Message, own []string) bool {
	if !m.End || m.Malformed != "" || m.TooLarge {
		return false
	}
	for _, f := range m.Fields {
		if f.IsPseudo() || isDecisive(f.Name) || isOwn(own, f.Name) {
			return false
		}
	}
	return true
}

// count checks a part of a body against Content-Length. Called with the
// connection's mu held.
func (s *stream2) count(b []byte, from int, end, padded bool) bool {
	if s.left < 0 {
		return true
	}
	n := len(b) - from
	if padded {
		n -= 1 + int(b[from])
	}
	s.left -= int64(n)
	return s.left >= 0 && (!end || s.left == 0)
}

// over tells the gate, once, and not while it still decides.
func (s *stream2) over(err error) {
	select {
	case <-s.asked:
		s.end(err)
	default:
		go func() {
			<-s.asked
			s.end(err)
		}()
	}
}

func (s *stream2) end(err error) {
	s.once.Do(func() {
		s.c.mu.Lock()
		result := Result{Status: s.status, GRPCStatus: s.grpc, Err: err}
		s.c.mu.Unlock()
		result.Sent, result.Received = s.Sent.Load(), s.Received.Load()
		s.gate.End(result)
	})
}
