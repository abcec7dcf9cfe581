package jwks

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issuer is a real server with TLS; what it answers can be changed.
type issuer struct {
	*httptest.Server
	mu     sync.Mutex
	answer http.HandlerFunc
	asked  chan string // paths, as they are asked for
}

func newIssuer(t *testing.T, answer http.HandlerFunc) *issuer {
	t.Helper()
	i := &issuer{answer: answer, asked: make(chan string, 1000)}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.asked <- r.URL.Path
		i.mu.Lock()
		answer := i.answer
		i.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) set(answer http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = answer
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(s)) }
}

// running is a Fetcher that trusts the issuer, and that takes any answer that
// begins with "keys" for a key set.
type running struct {
	*Fetcher
	sets chan map[string]string
	log  *observer.ObservedLogs
	said chan struct{}
}

func start(t *testing.T, transport http.RoundTripper) *running {
	t.Helper()
	core, log := observer.New(zap.InfoLevel)
	r := &running{sets: make(chan map[string]string, 100), log: log, said: make(chan struct{}, 1000)}
	logger := zap.New(core, zap.Hooks(func(zapcore.Entry) error { r.said <- struct{}{}; return nil }))
	r.Fetcher = New(Config{
		Log: logger, Transport: transport, Changed: func(sets map[string]string) { r.sets <- sets },
		Parse: func(document []byte) (string, error) {
			if !strings.HasPrefix(string(document), "keys") {
				return "", errors.New("not a key set")
			}
			return string(document), nil
		},
	})
	r.refresh, r.backoff = time.Millisecond, time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func (r *running) await(t *testing.T, name, want string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case sets := <-r.sets:
			if sets[name] == want {
				return
			}
		case <-deadline:
			t.Fatalf("%s is never %q", name, want)
		}
	}
}

func (r *running) awaitLog(t *testing.T, part string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		for _, e := range r.log.All() {
			if strings.Contains(fmt.Sprint(e.Message, e.ContextMap()), part) {
				return
			}
		}
		select {
		case <-r.said:
		case <-deadline:
			t.Fatalf("no word of %q in %v", part, r.log.All())
		}
	}
}

func TestRotation(t *testing.T) {
	i := newIssuer(t, text("keys 1"))
	r := start(t, i.Client().Transport)
	r.Want([]Source{{Name: "a", URI: i.URL + "/jwks"}})
	r.await(t, "a", "keys 1")
	i.set(text("keys 2"))
	r.await(t, "a", "keys 2")
	// What was fetched stays while nothing better comes.
	i.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	r.awaitLog(t, "status 500")
	i.set(text("nonsense"))
	r.awaitLog(t, "not a key set")
	i.set(text("keys 3"))
	r.await(t, "a", "keys 3")
}

func TestDiscovery(t *testing.T) {
	i := newIssuer(t, nil)
	i.set(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/tenant/.well-known/openid-configuration":
			_, _ = fmt.Fprintf(w, `{"issuer": %q, "jwks_uri": %q}`, i.URL+"/tenant", i.URL+"/keys")
		case "/other/.well-known/openid-configuration":
			_, _ = fmt.Fprintf(w, `{"issuer": %q, "jwks_uri": %q}`, i.URL+"/tenant", i.URL+"/keys")
		case "/keys":
			_, _ = w.Write([]byte("keys"))
		}
	})
	r := start(t, i.Client().Transport)
	r.Want([]Source{{Name: "good", Issuer: i.URL + "/tenant"}, {Name: "posing", Issuer: i.URL + "/other"}})
	r.await(t, "good", "keys")
	r.awaitLog(t, "configuration is of")
}

// One issuer that never answers does not keep the others waiting.
func TestStuckIssuer(t *testing.T) {
	release := make(chan struct{})
	stuck := newIssuer(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	i := newIssuer(t, text("keys"))
	transport := i.Client().Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.InsecureSkipVerify = true
	r := start(t, transport)
	r.Want([]Source{{Name: "stuck", URI: stuck.URL}, {Name: "fine", URI: i.URL}})
	<-stuck.asked
	r.await(t, "fine", "keys")
}

func TestRefused(t *testing.T) {
	i := newIssuer(t, text("keys"))
	long := newIssuer(t, text("keys"+strings.Repeat(" ", maxAnswer)))
	away := newIssuer(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, i.URL, http.StatusFound) })
	for _, test := range []struct{ name, uri, want string }{
		{"no TLS", "http://example.com/", "https://HOST/PATH"},
		{"a file", "file:///etc/passwd", "https://HOST/PATH"},
		{"a password", "https://a:b@example.com/", "https://HOST/PATH"},
		{"too long", long.URL, "longer than 1 MB"},
		{"a redirect", away.URL, "status 302"},
	} {
		transport := i.Client().Transport.(*http.Transport).Clone()
		transport.TLSClientConfig.InsecureSkipVerify = true
		f := New(Config{Log: zap.NewNop(), Transport: transport, Parse: func(b []byte) (string, error) { return string(b), nil }})
		if _, err := f.once(t.Context(), Source{Name: "x", URI: test.uri}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		transport.CloseIdleConnections()
	}
	select {
	case <-i.asked:
		t.Error("the redirect was followed")
	default:
	}
}

// The address is checked when the connection is made, whatever the name was.
func TestForbiddenAddresses(t *testing.T) {
	forbidden := []netip.Prefix{netip.MustParsePrefix("10.96.0.1/32")}
	for address, allowed := range map[string]bool{
		"127.0.0.1:443": false, "[::1]:443": false, "169.254.169.254:80": false, "[fe80::1%eth0]:443": false,
		"[::ffff:127.0.0.1]:443": false, "0.0.0.0:443": false, "[::]:443": false, "224.0.0.1:443": false,
		"10.96.0.1:443": false, "[::ffff:10.96.0.1]:443": false, "[64:ff9b::7f00:1]:443": false, "255.255.255.255:443": false,
		"192.0.2.1:443": true, "10.96.0.2:443": true, "[2001:db8::1]:443": true,
	} {
		if err := permitted(address, forbidden); (err == nil) != allowed {
			t.Errorf("%s: %v", address, err)
		}
	}
	i := newIssuer(t, text("keys"))
	f := New(Config{Log: zap.NewNop(), Parse: func(b []byte) (string, error) { return string(b), nil }})
	port := i.URL[strings.LastIndex(i.URL, ":"):]
	for _, host := range []string{"127.0.0.1", "localhost"} {
		if _, err := f.once(t.Context(), Source{Name: "x", URI: "https://" + host + port}); err == nil || !strings.Contains(err.Error(), "not fetched from") {
			t.Errorf("%s: %v", host, err)
		}
	}
	select {
	case <-i.asked:
		t.Error("a forbidden address was asked")
	default:
	}
}

// An issuer that is away is asked more and more seldom, but no more seldom
// than one that answers.
func TestBackoff(t *testing.T) {
	i := newIssuer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	r := start(t, i.Client().Transport)
	r.refresh = 3 * time.Millisecond
	r.Want([]Source{{Name: "a", URI: i.URL}})
	var waits []time.Duration
	for len(waits) < 5 {
		waits = waits[:0]
		for _, e := range r.log.All() {
			waits = append(waits, e.ContextMap()["again_in"].(time.Duration))
		}
		select {
		case <-r.said:
		case <-time.After(patience):
			t.Fatalf("only %v", waits)
		}
	}
	const ms = time.Millisecond
	if want := []time.Duration{ms, 2 * ms, 3 * ms, 3 * ms, 3 * ms}; !slices.Equal(waits[:5], want) {
		t.Errorf("it waits %v, want %v", waits, want)
	}
}

// A source that is not wanted any longer is forgotten.
func TestUnwanted(t *testing.T) {
	i := newIssuer(t, text("keys"))
	r := start(t, i.Client().Transport)
	r.Want([]Source{{Name: "a", URI: i.URL + "/a"}})
	r.await(t, "a", "keys")
	r.Want([]Source{{Name: "b", URI: i.URL + "/b"}})
	deadline := time.After(patience)
	for {
		select {
		case sets := <-r.sets:
			if sets["b"] == "keys" {
				if _, there := sets["a"]; there {
					t.Errorf("still there: %v", sets)
				}
				return
			}
		case <-deadline:
			t.Fatal("b never came")
		}
	}
}
