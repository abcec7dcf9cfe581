// Package http carries HTTP between a client and an application so that every
// request is decided on, and what was decided on is what is forwarded.
//
// HTTP/1 is parsed strictly and forwarded as the bytes that came, but for what
// RFC 9110 has removed by every hop and what a decision changes; see request.go
// for what is refused. HTTP/2 is translated frame by frame; windows, PING and
// SETTINGS are the two ends' own, so that nothing is held here. One connection
// of the client is one of the application, never shared. Bodies stream.
//
// What does not belong here: the decision itself, which a [Gate] makes, and
// where connections come from (proxy).
package http

import (
	"sync/atomic"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/relay"
)

// Side is one of the two ends: the client, or the application. One goroutine
// reads while another one sends. *hbone.Terminal is one, and [NewSocket] makes
// one of a TCP connection.
type Side interface {
	// Read waits without a buffer until there is something to read, then
	// reads at most limit bytes behind head bytes left free in a pooled
	// buffer, which the caller frees. FIN is io.EOF.
	Read(class, head, limit int) (*relay.Buffer, int, error)
	// Send sends b[from:] and waits as long as it takes. It may overwrite the
	// sideRoom bytes in front. Each time that it has waited for a second it
	// asks stalled, whose error ends it.
	Send(b []byte, from int, stalled func() error) error
	// Err is what ended it out of order; nil while nothing did.
	Err() error
	// CloseWrite sends FIN behind what was sent.
	CloseWrite() error
	// Reset ends it at once with RST.
	Reset()
}

const (
	sideRoom = 9 // what a Side may overwrite in front of what it sends
	// headRoom is left free in front of what is read: for a frame header of
	// HTTP/2, and then for the side's.
	headRoom = 2 * sideRoom
)

// Protocol is what a port is declared to carry.
type Protocol uint8

// The protocols. What is Undeclared is recognized by its first bytes.
const (
	Undeclared Protocol = iota
	HTTP1
	HTTP2
	Opaque // no HTTP, as its port declares or its first bytes show
)

func (p Protocol) String() string {
	switch p {
	case HTTP1:
		return "http"
	case HTTP2:
		return "http2"
	case Opaque:
		return "tcp"
	case Undeclared:
	}
	return "undeclared"
}

// Gate decides on what one connection carries. HTTP/2 calls it from several
// goroutines.
type Gate interface {
	// Begin decides on a request and enters it into the live ones, before
	// the decision. What it returns is told of the end, in any case.
	Begin(*Request, *Live) Exchange
	// Opaque decides on a connection that carries something else. Its error
	// is why it must not. serverName is what the ClientHello is for if the
	// client's bytes begin with one; empty if it names nobody.
	Opaque(serverName string) error
	// Malformed is told of a request that is answered with a status without
	// a decision, since it could mean different things to different parsers.
	Malformed(*MalformedError)
}

// Exchange is a request and its response, as the Gate follows them.
type Exchange interface {
	// Wants is how many bytes of the request's body the decision looks at:
	// so many are waited for, or the whole of a shorter one. It is called once,
	// of a request that has a body.
	Wants() int
	// Hold finds room for n more bytes of the body, which have come in front of
	// the decision; it may be called while that is made. If it reports false
	// they are not held.
	Hold(n int) bool
	// Free gives up room for n bytes: they are on their way to the application,
	// as far as that has given window for them, or are forgotten.
	Free(n int)
	// Decision is what becomes of the request. It is called at most once, not
	// for a request that ends before, and may wait for others if ready is false.
	Decision(Content) Decision
	Ready() bool
	// End is the end, whatever led to it. It is called once.
	End(Result)
}

// Content is the beginning of a request's body, without its framing.
type Content struct {
	Bytes []byte // not to be changed
	Whole bool   // there is no more
	// NoRoom says that there is none for what the decision wants to see, which
	// must be a refusal then.
	NoRoom bool
}

// Decision is what becomes of a request.
type Decision struct {
	// Refusal is answered in the place of the application; nil forwards.
	Refusal *Refusal
	Edits   Edits
	// Own are the names of fields that only the decision may say or take off.
	// A request that has one in its trailers is broken off: servers may merge
	// these into the header.
	Own []string
	// Response changes the head of the application's response.
	Response ResponseEdits
}

// ResponseEdits change the head of a response: fields of the names in Set are
// replaced by these, those in Add stand beside the others.
type ResponseEdits struct{ Set, Add []Field }

// Edits change the head of a request before it is forwarded.
type Edits struct {
	// Fields, unless nil, are forwarded in the place of those of the request.
	Fields []Field
	// Target, unless empty, is the path and query to forward.
	Target string
}

func (e *Edits) empty() bool { return e.Fields == nil && e.Target == "" }

// Refusal is an answer that the proxy gives itself.
type Refusal struct {
	Status int
	// GRPC is the status for a caller that speaks gRPC; see package codes
	// of grpc.
	GRPC    int
	Message string
	Fields  []Field
}

// Live is the part of an exchange under way that others may look at and act on.
type Live struct {
	// Abort ends the exchange with a reset, from any goroutine. It does not
	// wait and may be called at any time, also behind the end.
	Abort          func()
	Sent, Received atomic.Int64 // bytes of the two bodies so far, as framed
}

// Result is how an exchange ended.
type Result struct {
	Status int // of the response; 0 if there was none
	// GRPCStatus is the one of the trailers or header; -1 without.
	GRPCStatus     int
	Sent, Received int64
	Err            error // nil if it came to its end
}

// Field is one field of a header or trailer section, its name as it came.
type Field = policy.HeaderField
