package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
)

// What a refused stream has taken from the application comes first, also where
// the next candidate is reached in plain TCP.
func TestPlainCandidateGetsWhatWasTaken(t *testing.T) {
	s := startOneServer(t, echoing(t))
	server, err := net.Dial("tcp", echoing(t).String())
	if err != nil {
		t.Fatal(err)
	}
	near := listening(t)
	defer near.Close()
	app, err := net.Dial("tcp", near.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	conn, err := near.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a := &attempt{
		Connection: s.begin(s.localPod("uid"), conn.(*net.TCPConn), telemetry.Outbound),
		server:     server.(*net.TCPConn), replay: &hbone.Replay{Data: []byte("GET / ")},
	}
	a.deadline = newDeadline(s.Sockets.Absence, connectTimeout, func() { t.Error("the deadline has passed") }, nil)
	carried := make(chan struct{})
	go func() {
		defer close(carried)
		a.carryPlain()
		s.end(a.Connection)
	}()
	_, _ = io.WriteString(app, "HTTP/1.1")
	_ = app.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(app)
	if err != nil || string(got) != "GET / HTTP/1.1" {
		t.Errorf("the server got %q (%v)", got, err)
	}
	<-carried
	if a.record.Sent != int64(len(got)) {
		t.Errorf("%d bytes counted", a.record.Sent)
	}
}

// What may be over in a moment is tried again until the deadline, and nothing
// else: a peer that proves to be another one stays so.
func TestPeerAway(t *testing.T) {
	handshake := func(err error) error {
		return &hbone.DialError{Err: fmt.Errorf("TLS handshake: %w", err)}
	}
	refused := func(reason string) error {
		return handshake(&identity.PeerError{Reason: reason, Err: errors.New("refused")})
	}
	for name, c := range map[string]struct {
		err  error
		away bool
	}{
		"nobody listens":                 {&hbone.DialError{Err: syscall.ECONNREFUSED}, true},
		"lost before anything was taken": {&hbone.RefusedError{Err: io.EOF}, true},
		"an answer":                      {&hbone.RefusedError{Status: statusUnavailable}, false},
		"the own certificate has ended":  {refused("own_certificate"), true},
		"the peer's has":                 {refused("expired"), true},
		"one has, after the handshake":   {handshake(hbone.ErrCertificateEnded), true},
		"another identity":               {refused("wrong_identity"), false},
		"another authority":              {refused("unknown_authority"), false},
		"a revoked certificate":          {refused("revoked"), false},
	} {
		if away := peerAway(c.err); away != c.away {
			t.Errorf("%s: %v, want %v", name, away, c.away)
		}
	}
}
