package http

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

// understood is what an origin server made of a request.
type understood struct {
	method, target, host, role, body string
	denied                           bool // it takes the path for one that is
}

// origin notes what a server understands: net/http's, or one in front of it.
type origin struct {
	front string // "nginx", or empty
	mu    sync.Mutex
	seen  []understood
}

func (o *origin) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // no body that ends is no request
	}
	u := understood{
		r.Method, r.RequestURI, r.Host, r.Header.Get("X-Role"), string(body),
		strings.HasPrefix(path.Clean(r.URL.Path), "/deny"),
	}
	if o.front != "" {
		u.host, u.denied = r.Header.Get("X-Front-Host"), r.Header.Get("X-Front-Denied") != ""
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = append(o.seen, u)
}

func (o *origin) take() []understood {
	o.mu.Lock()
	defer o.mu.Unlock()
	seen := o.seen
	o.seen = nil
	return seen
}

// denyNormal refuses paths that begin with /deny in the form that is forwarded.
func denyNormal(r *Request) Decision {
	if r.Method == "CONNECT" {
		return Decision{Refusal: &Refusal{Status: 403}}
	}
	normal, err := policy.NormalizePath(model.NormalizeDecodeAndMergeSlashes, r.Path())
	switch {
	case err != nil:
		return Decision{Refusal: &Refusal{Status: 400}}
	case strings.HasPrefix(normal, "/deny"):
		return Decision{Refusal: &Refusal{Status: 403}}
	case normal != r.Path():
		if query := r.Query(); query != "" {
			normal += "?" + query
		}
		return Decision{Edits: Edits{Target: normal}}
	}
	return Decision{}
}

// compare: the origin may see fewer requests than were allowed, since it
// refuses some itself, and none that was not, each as it was decided on.
func (o *origin) compare(t testing.TB, gate *testGate) (matched int) {
	t.Helper()
	gate.mu.Lock()
	allowed := gate.decided
	gate.mu.Unlock()
	for _, got := range o.take() {
		found := false
		for len(allowed) > 0 && !found {
			found = got.is(&allowed[0])
			allowed = allowed[1:]
		}
		if !found || got.denied {
			t.Errorf("the origin understood %+v, which was not decided on so: %+v", got, gate.decided)
		}
		matched++
	}
	return matched
}

func (u *understood) is(r *decidedOn) bool {
	target := u.target
	if i := strings.Index(target, "://"); i >= 0 && target[0] != '/' { // absolute form
		target = target[strings.IndexByte(target[i+3:], '/')+i+3:]
	}
	role := ""
	for _, f := range r.Fields {
		if strings.EqualFold(f.Name, "X-Role") {
			role = f.Value
			break
		}
	}
	wanted := r.target
	if i := strings.IndexByte(wanted, '?'); i == len(wanted)-1 && !strings.HasSuffix(target, "?") {
		wanted = wanted[:i] // an empty query is none
	}
	return r.Method == u.method && wanted == target && strings.EqualFold(r.Host, u.host) && role == u.role &&
		(!r.whole || r.body == u.body) && strings.HasPrefix(u.body, r.body)
}

// FuzzDecided: whatever comes, an origin server sees the requests that were
// decided on and allowed, as they were decided on, and no others.
func FuzzDecided(f *testing.F) {
	for _, seed := range hostile1 {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, input string, bodies bool) { decidedByGo(t, input, bodies) })
}

// decidedByGo has net/http's server understand what is let through of an input;
// bodies, whether decisions see them.
func decidedByGo(t *testing.T, input string, bodies bool) (matched int) {
	o := &origin{}
	s := httptest.NewServer(o)
	defer s.Close()
	gate := send1(t, s.Listener.Addr(), input, bodies)
	s.Close() // which waits until the origin has understood what it got
	return o.compare(t, gate)
}

// send1 sends bytes by way of Serve and reads until the end.
func send1(t *testing.T, app net.Addr, input string, bodies bool) *testGate {
	gate := newGate(denyNormal)
	if bodies {
		gate.wants = 1 << 20
	}
	c, b := dial(t, proxied(t, app, HTTP1, gate))
	say(t, c, input)
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, b)
	_ = c.Close()
	return gate
}

// witness is an nginx that forwards to net/http what it understands.
type witness struct {
	nginx
	origin
	status net.Addr
}

const witnessConfig = `daemon off; master_process off; error_log stderr crit; pid pid;
events {}
http {
  access_log off; client_body_temp_path body; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  lingering_close off; proxy_ignore_client_abort on;
  server {
    listen %[1]s; listen %[2]s http2;
    location / { proxy_set_header X-Front-Host $http_host; proxy_set_header X-Front-Denied ""; proxy_pass http://%[4]s; }
    location ^~ /deny { proxy_set_header X-Front-Host $http_host; proxy_set_header X-Front-Denied 1; proxy_pass http://%[4]s; }
  }
  server { listen %[3]s; keepalive_requests 1000000; location / { stub_status; } }
}
`

func startWitness(t *testing.T) *witness {
	t.Helper()
	w := &witness{nginx: nginx{free(t), free(t)}, origin: origin{front: "nginx"}, status: free(t)}
	behind := httptest.NewServer(w)
	t.Cleanup(behind.Close)
	runNginx(t, t.TempDir(), fmt.Sprintf(witnessConfig, w.plain, w.http2, w.status, behind.Listener.Addr()), w.status)
	return w
}

// quiet returns when nginx has no connection but the one that asks.
func (w *witness) quiet(t *testing.T) {
	t.Helper()
	c, b := dial(t, w.status)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for ; ; <-again.C {
		say(t, c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		r, err := http.ReadResponse(b, nil)
		must(t, err)
		text, err := io.ReadAll(r.Body)
		must(t, err)
		must(t, r.Body.Close())
		var active int
		_, err = fmt.Sscanf(string(text), "Active connections: %d", &active)
		must(t, err)
		if active == 1 {
			must(t, c.Close())
			return
		}
	}
}
