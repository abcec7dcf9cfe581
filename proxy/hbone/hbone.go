// Package hbone carries TCP connections through HTTP/2 CONNECT over mutual
// TLS, as Istio ambient does: a pool of connections at the client's node, a
// server at the other, and the relay between a stream and an application's
// socket.
//
// One goroutine per connection reads frames and writes their bytes straight
// into applications' sockets; it never waits for one of them. One goroutine
// per stream, at first the caller's, reads the application. Neither holds a
// buffer while nothing moves, and a stream on which nothing has moved for a
// while has no goroutine either.
//
// What does not belong here: who may connect (proxy/policy), where to
// (proxy/route), and certificates (identity).
package hbone

import (
	"errors"
	"fmt"
)

// Header is one header field; the name is in lower case.
type Header struct{ Name, Value string }

// value returns the first value of name, or "".
func value(headers []Header, name string) string {
	for _, h := range headers {
		if h.Name == name {
			return h.Value
		}
	}
	return ""
}

// Cause says why a tunnel connection ended; it suits a metric label.
type Cause string

// The causes.
const (
	CauseClosed        Cause = "closed"         // orderly: drained, idle or ended by the peer
	CauseLost          Cause = "lost"           // a read or write failed
	CauseCanceled      Cause = "canceled"       // from outside: its context ended, or it was evicted
	CausePingTimeout   Cause = "ping_timeout"   // the peer answers no longer
	CauseProtocol      Cause = "protocol_error" // frames that RFC 9113 does not allow
	CauseFrameSize     Cause = "frame_size"     // an oversized frame
	CauseFlowControl   Cause = "flow_control"   // more than the window, or a window past its maximum
	CauseCompression   Cause = "compression"    // a header block that cannot be decoded
	CauseHeaderFlood   Cause = "header_flood"   // a header list or CONTINUATION without end
	CauseRapidReset    Cause = "rapid_reset"    // streams opened and reset at once (CVE-2023-44487)
	CauseControlFlood  Cause = "control_flood"  // PING, SETTINGS, empty frames and such
	CauseSlowHandshake Cause = "slow_handshake" // no HTTP/2 preface in time
	CauseCertificate   Cause = "certificate"    // one has ended, and then the grace of its streams
)

// Limits of both ends. What the peer is told is in settings.go.
const (
	keptBytes         = 64 << 10 // sent before the answer, kept for a replay
	firstWindow       = 64 << 10 // of a stream, until it is accepted and beyond while it is slow
	largestWindow     = 4 << 20
	connectionWindow  = 16 << 20
	connectionCredit  = connectionWindow / 4 // received before it is credited
	maxFrame          = 1 << 20              // DATA is passed on as it arrives
	maxControlFrame   = 16 << 10             // any other frame
	clientHeaderList  = 16 << 10
	serverHeaderList  = 64 << 10
	clientStreams     = 100 // per connection; fewer if the server says so
	serverStreams     = 200
	maxPendingControl = 256 << 10 // control frames that the peer does not read
)

// Replay is what an application had sent when its stream was refused. It is
// for the next stream's Relay.
type Replay struct {
	Data []byte // at most 64 KB
	FIN  bool   // nothing follows Data
}

// RefusedError says that a stream was not established. The application's
// socket is untouched apart from what Replay holds.
type RefusedError struct {
	Status  int // of the answer; 0 without one
	Headers []Header
	Replay  *Replay
	Err     error // why, without an answer
	safe    bool
}

func (e *RefusedError) Error() string {
	if e.Status == 0 {
		return fmt.Sprintf("hbone stream not established: %v", e.Err)
	}
	return fmt.Sprintf("hbone stream refused with status %d", e.Status)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// Retryable reports whether nothing of the stream reached an application, so
// that the next endpoint may be tried: status 503, a stream that the peer
// says it has not processed, or a peer that refused the TLS connection.
func (e *RefusedError) Retryable() bool { return e.Status == 503 || e.safe }

// DialError says that no connection to the peer could be made; nothing was
// sent, so the next endpoint or the same one may be tried.
type DialError struct {
	Key Key
	Err error
}

func (e *DialError) Error() string {
	return fmt.Sprintf("hbone connection to %s: %v", e.Key.Destination, e.Err)
}

func (e *DialError) Unwrap() error { return e.Err }

var (
	errReset    = errors.New("stream reset by peer")
	errAborted  = errors.New("stream aborted")
	errDraining = errors.New("peer is draining and has not processed the stream")
	errRefused  = errors.New("peer has not processed the stream")
)
