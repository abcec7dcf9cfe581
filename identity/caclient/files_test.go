package caclient_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/identity/identitytest"
)

// Files that are of no use are named, with whose certificate is not got for
// them. When they are good again, so is everything.
func TestBadFiles(t *testing.T) {
	const huge = 10 << 20
	roots, token := func(c caclient.Config) string { return c.RootsFile }, func(c caclient.Config) string { return c.TokenFile }
	for name, test := range map[string]struct {
		file    func(caclient.Config) string
		content string
		want    string
	}{
		"no roots":           {roots, "", "no PEM certificate in"},
		"roots that are not": {roots, "noise", "no PEM certificate in"},
		"roots of 10 MB":     {roots, strings.Repeat("-", huge), "larger than"},
		"no token":           {token, "", "is empty"},
		"a token of 10 MB":   {token, strings.Repeat("t", huge), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t)
			path := test.file(a.config)
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, path, test.content)
			s := subscribe(t, a.config)
			if err := s.failure(); !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) ||
				!strings.Contains(err.Error(), alice.String()) || !strings.Contains(err.Error(), a.config.Address) {
				t.Errorf("failure %v, want a word of %q", err, test.want)
			}
			writeFile(t, path, string(good))
			drive(t, a.clock, s.updates)
		})
	}
}

func TestMissingFiles(t *testing.T) {
	a := newAuthority(t)
	missing := filepath.Join(t.TempDir(), "missing")
	for _, config := range []func(c *caclient.Config){
		func(c *caclient.Config) { c.RootsFile = missing },
		func(c *caclient.Config) { c.TokenFile = missing },
	} {
		c := a.config
		config(&c)
		if err := subscribe(t, c).failure(); !strings.Contains(err.Error(), missing) {
			t.Errorf("failure %v does not name %s", err, missing)
		}
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("made by the client")
	}
}

// A server that does anything but speak is told apart from an authority within
// the time that a request has.
func TestBadServers(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"hangs":            func(net.Conn) {},
		"closes":           func(c net.Conn) { _ = c.Close() },
		"half a record":    func(c net.Conn) { _, _ = c.Write([]byte{22, 3, 3, 0, 122, 2, 0, 0}) },
		"another protocol": func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t)
			a.config.Address = identitytest.Server(t, serve)
			s := subscribe(t, a.config)
			select {
			case err := <-s.fails:
				if text := err.Error(); !strings.Contains(text, alice.String()) || !strings.Contains(text, a.config.Address) || !strings.Contains(text, "check its address, server name and roots file") {
					t.Errorf("failure %v", err)
				}
			case <-time.After(time.Minute):
				t.Error("neither a certificate nor a failure")
			}
		})
	}
}

// A token that is replaced while a request is under way, and from then on is
// worth nothing, costs one failure.
func TestTokenReplacedDuringRequest(t *testing.T) {
	a := newAuthority(t)
	s := subscribe(t, a.config)
	first := s.update()
	a.change(func() {
		a.requests, a.metadata = nil, nil
		a.asked = func() {
			a.asked, a.token = nil, "new"
			writeFile(t, a.config.TokenFile, "new")
		}
	})
	if err, _ := drive(t, a.clock, s.fails); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "check the token file") {
		t.Errorf("failure %v", err)
	}
	if !first.ValidAt(a.clock.Now()) {
		t.Error("too late: the first certificate has ended")
	}
	drive(t, a.clock, s.updates)
	a.mu.Lock()
	defer a.mu.Unlock()
	var sent []string
	for _, md := range a.metadata {
		sent = append(sent, md.Get("authorization")...)
	}
	if strings.Join(sent, ", ") != "Bearer secret, Bearer new" || len(s.fails) > 0 {
		t.Errorf("sent %q, and %d more failures", sent, len(s.fails))
	}
}
