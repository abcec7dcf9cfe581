package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/tacit-mesh/tacit/proxy/extauthz"
	tacithttp "github.com/tacit-mesh/tacit/proxy/http"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/model"
)

// bodyJudge allows what begins with "pass".
type bodyJudge struct {
	authv3.UnimplementedAuthorizationServer
}

func (bodyJudge) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	code := codes.PermissionDenied
	if strings.HasPrefix(r.GetAttributes().GetRequest().GetHttp().GetBody(), "pass") {
		code = codes.OK
	}
	return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(code)}}, nil
}

// judges starts providers over gRPC and HTTP that judge by bodies.
func judges(t *testing.T) map[string]*model.Provider {
	t.Helper()
	l := listening(t)
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, bodyJudge{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); !strings.HasPrefix(string(body), "pass") {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	t.Cleanup(func() {
		s.Stop()
		<-done
		web.Close()
	})
	provider := func(protocol model.ProviderProtocol, at net.Addr) *model.Provider {
		a := netip.MustParseAddrPort(at.String())
		return &model.Provider{Name: "judge", Protocol: protocol, Host: a.Addr().String(), Port: a.Port(), Timeout: patience}
	}
	return map[string]*model.Provider{"gRPC": provider(model.ProviderGRPC, l.Addr()), "HTTP": provider(model.ProviderHTTP, web.Listener.Addr())}
}

// asking is a policy that has a provider decide on all requests.
func asking(provider *model.Provider) *model.Policy {
	return &model.Policy{
		Name: "ask", Namespace: "mesh", Scope: model.ScopeNamespace, Action: model.ActionCustom, Provider: provider,
		Rules: []model.Rule{{}},
	}
}

// client speaks a version of HTTP to the server.
func (s *oneServer) client(t *testing.T, version int) *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols), Dial: func(_, _ string) (net.Conn, error) { //nolint:staticcheck // the context is of no use here
		return net.Dial("tcp", s.address)
	}}
	transport.Protocols.SetHTTP1(version == 1)
	transport.Protocols.SetUnencryptedHTTP2(version == 2)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// About what is for the provider itself it is not asked: that would have to be
// asked about in turn. It is denied, or passes where the provider fails open.
func TestProviderIsNotAskedAboutItself(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer app.Close()
	for _, test := range []struct {
		failOpen bool
		want     int
	}{{false, 403}, {true, 200}} {
		// To ask would take as long as the whole test may.
		itself := &model.Provider{Name: "gate", Protocol: model.ProviderHTTP, Host: arrived4.String(), Port: 8080, Timeout: time.Hour, FailOpen: test.failOpen}
		s := startOneServer(t, app.Listener.Addr(), asking(itself))
		answer, err := s.client(t, 1).Get("http://server/")
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != test.want {
			t.Errorf("failing open %v: %d, want %d", test.failOpen, answer.StatusCode, test.want)
		}
	}
}

// A provider decides by bodies, of which it sees as much as is declared, and
// what it lets pass arrives whole.
func TestProvidersSeeBodies(t *testing.T) {
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // all of it: with an answer under way net/http reads no more
		_, _ = w.Write(body)
	}))
	app.Config.Protocols = new(http.Protocols)
	app.Config.Protocols.SetHTTP1(true)
	app.Config.Protocols.SetUnencryptedHTTP2(true)
	app.Start()
	defer app.Close()
	long := "pass" + strings.Repeat("x", 100<<10)
	for name, provider := range judges(t) {
		for _, partial := range []bool{false, true} {
			declared := *provider
			declared.IncludeBody, declared.AllowPartial = 10, partial
			declared.FailOpen = true // also then no body is let pass unseen
			s := startOneServer(t, app.Listener.Addr(), asking(&declared))
			for version := 1; version <= 2; version++ {
				client := s.client(t, version)
				for _, test := range []struct {
					body           string
					whole, partial int
				}{{"pass", 200, 200}, {"fail", 403, 403}, {"", 403, 403}, {"pass567890", 200, 200}, {"pass5678901", 413, 200}, {long, 413, 200}} {
					want := test.whole
					if partial {
						want = test.partial
					}
					for framing, body := range map[string]io.Reader{"length": strings.NewReader(test.body), "chunks": io.MultiReader(strings.NewReader(test.body))} {
						what := fmt.Sprintf("%s, partial %v, HTTP/%d, %d bytes by %s", name, partial, version, len(test.body), framing)
						answer, err := client.Post("http://server/", "text/plain", body)
						if err != nil {
							t.Errorf("%s: %v", what, err)
							continue
						}
						got, err := io.ReadAll(answer.Body)
						_ = answer.Body.Close()
						if err != nil || answer.StatusCode != want || want == 200 && string(got) != test.body {
							t.Errorf("%s: %d with %d bytes, %v, want %d", what, answer.StatusCode, len(got), err, want)
						}
					}
				}
			}
			until(t, "the pod's share is given back", func() bool { return s.localPod("uid").share.bodies.Taken() == 0 })
		}
	}
}

// Requests without a body take nothing of what is kept for bodies, however many
// of them wait for a provider.
func TestRequestsWithoutBodies(t *testing.T) {
	const callers = 2 * maxBodies / maxBody
	asked, answer := make(chan struct{}, callers), make(chan struct{})
	provider := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-answer
	}))
	defer provider.Close()
	release := sync.OnceFunc(func() { close(answer) })
	defer release()
	at := netip.MustParseAddrPort(provider.Listener.Addr().String())
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	app.Config.Protocols = new(http.Protocols)
	app.Config.Protocols.SetHTTP1(true)
	app.Config.Protocols.SetUnencryptedHTTP2(true)
	app.Start()
	defer app.Close()
	s := startOneServer(t, app.Listener.Addr(), asking(&model.Provider{
		Name: "slow", Protocol: model.ProviderHTTP, Host: at.Addr().String(), Port: at.Port(), Timeout: patience, IncludeBody: maxBody,
	}))
	statuses := make(chan string, callers)
	for version := 1; version <= 2; version++ {
		client := s.client(t, version)
		for range callers / 2 {
			go func() {
				answer, err := client.Get("http://server/")
				if err != nil {
					statuses <- err.Error()
					return
				}
				_ = answer.Body.Close()
				statuses <- answer.Status
			}()
		}
	}
	for range callers {
		select {
		case <-asked:
		case status := <-statuses:
			t.Fatalf("%s before the provider has decided", status)
		}
	}
	if n := s.localPod("uid").share.bodies.Taken(); n != 0 {
		t.Errorf("%d bytes are held for requests without a body", n)
	}
	release()
	for range callers {
		if status := <-statuses; status != "200 OK" {
			t.Error(status)
		}
	}
}

// Callers who leave all that they can with us keep nobody out: there is room
// for a whole body behind four of them, and for some of one behind many.
func TestShareOfBodies(t *testing.T) {
	bodies := newShare(1).bodies
	const step = 1 << 10
	fill := func(source netip.Addr) (n int) {
		for bodies.Take(source, step) {
			n += step
		}
		return n
	}
	if n := fill(arrived4); n != maxBodiesFromSource || bodies.Taken() != n {
		t.Errorf("%d bytes of one source, %d of all", n, bodies.Taken())
	}
	source := arrived4
	for range 3 {
		source = source.Next()
		fill(source)
	}
	if source = source.Next(); !bodies.Take(source, maxBody) {
		t.Error("four sources keep a body of another one out")
	}
	for range 6 {
		if source = source.Next(); fill(source) == 0 {
			t.Errorf("%v is kept out: %d bytes are taken", source, bodies.Taken())
		}
	}
	if bodies.Taken() > maxBodies {
		t.Errorf("%d bytes are taken", bodies.Taken())
	}
	bodies.Give(arrived4, maxBodiesFromSource)
	if fill(arrived4) == 0 {
		t.Error("what was given back is not there")
	}
}

// Callers who announce bodies and send nothing of them take no room, whatever
// they announce, and what they have sent they take until it has left.
func TestAnnouncedBodies(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	defer app.Close()
	provider := *judges(t)["HTTP"]
	provider.IncludeBody = maxBody
	s := startOneServer(t, app.Listener.Addr(), asking(&provider))
	bodies := s.localPod("uid").share.bodies
	for range 2 * maxBodies / maxBody {
		c := s.dial(t)
		if _, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\npass", maxBody); err != nil {
			t.Fatal(err)
		}
	}
	const sent = 2 * maxBodies / maxBody * len("pass")
	until(t, "what was sent is held", func() bool { return bodies.Taken() == sent })
	answer, err := s.client(t, 1).Post("http://server/", "text/plain", strings.NewReader("pass"+strings.Repeat("x", maxBody-4)))
	if err != nil {
		t.Fatal(err)
	}
	if _ = answer.Body.Close(); answer.StatusCode != 200 {
		t.Errorf("beside them: %s", answer.Status)
	}
	until(t, "what has left is held no longer", func() bool { return bodies.Taken() == sent })
}

// Bodies that no decision looks at find room beside those that providers see,
// however much these take. Where there is none, that is told as what has happened.
func TestBodiesThatNobodySees(t *testing.T) {
	answer := make(chan struct{})
	provider := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-answer }))
	defer provider.Close()
	release := sync.OnceFunc(func() { close(answer) })
	defer release()
	at := netip.MustParseAddrPort(provider.Listener.Addr().String())
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	app.Config.Protocols = new(http.Protocols)
	app.Config.Protocols.SetUnencryptedHTTP2(true)
	app.Start()
	defer app.Close()
	core, logs := observer.New(zap.WarnLevel)
	s := startOneServerWith(t, app.Listener.Addr(), Config{Recorder: telemetry.New(telemetry.Options{Log: zap.New(core)})},
		asking(&model.Provider{Name: "slow", Protocol: model.ProviderHTTP, Host: at.Addr().String(), Port: at.Port(), Timeout: patience}))
	client := s.client(t, 2)
	post := func() string {
		answer, err := client.Post("http://server/", "text/plain", strings.NewReader("body"))
		if err != nil {
			return err.Error()
		}
		_ = answer.Body.Close()
		return answer.Status
	}
	caller, share := netip.MustParseAddr("127.0.0.1"), s.localPod("uid").share
	if !share.bodies.Take(caller, maxBodiesFromSource) {
		t.Fatal("no room for what providers see")
	}
	first := make(chan string, 1)
	go func() { first <- post() }()
	until(t, "a body is held", func() bool { return share.unseen.Taken() > 0 || len(first) > 0 })
	const rest = maxUnseenFromSource - len("body")
	if !share.unseen.Take(caller, rest) {
		t.Fatal("no room but for one body")
	}
	if status := post(); status != "503 Service Unavailable" {
		t.Errorf("without room: %s", status)
	}
	release()
	if status := <-first; status != "200 OK" {
		t.Errorf("beside bodies that providers see: %s", status)
	}
	until(t, "the room is given back", func() bool { return share.unseen.Taken() == rest })
	until(t, "the refusal is told", func() bool { return logs.Len() > 0 })
	if told := logs.All()[0].ContextMap(); told["reason"] != "too_many_bodies" || told["outcome"] != "denied" {
		t.Errorf("told: %v", told)
	}
}

// until waits for something that others bring about.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	retry := time.NewTicker(time.Millisecond)
	defer retry.Stop()
	for end := time.Now().Add(patience); !holds(); <-retry.C {
		if time.Now().After(end) {
			t.Fatalf("it did not come about that %s", what)
		}
	}
}

// What a provider adds to a request is not forged in trailers, and what it adds
// to the response comes to the caller; neither changes where a message ends.
func TestWhatProvidersAdd(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-User", "ann")
		w.Header().Set("Connection", "close")
		w.Header().Set("Upgrade", "h2c")
	}))
	defer web.Close()
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-User", "app")
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, r.Header.Get("X-User"), r.Trailer.Get("X-User"))
	}))
	app.Config.Protocols = new(http.Protocols)
	app.Config.Protocols.SetHTTP1(true)
	app.Config.Protocols.SetUnencryptedHTTP2(true)
	app.Start()
	defer app.Close()
	at := netip.MustParseAddrPort(web.Listener.Addr().String())
	named := []model.StringMatch{{Value: "x-user"}, {Value: "upgrade"}}
	s := startOneServer(t, app.Listener.Addr(), asking(&model.Provider{
		Name: "p", Protocol: model.ProviderHTTP, Host: at.Addr().String(), Port: at.Port(), Timeout: patience,
		HeadersToUpstreamOnAllow: named, HeadersToDownstreamOnOK: named,
	}))
	for version := 1; version <= 2; version++ {
		for _, forged := range []bool{false, true} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://server/", io.MultiReader(strings.NewReader("body")))
			if err != nil {
				t.Fatal(err)
			}
			if forged {
				r.Trailer = http.Header{"X-User": {"forged"}}
			}
			answer, err := s.client(t, version).Do(r)
			if err != nil {
				if !forged || version == 1 {
					t.Errorf("HTTP/%d: %v", version, err)
				}
				continue
			}
			body, _ := io.ReadAll(answer.Body)
			_ = answer.Body.Close()
			switch {
			case forged && answer.StatusCode != 400:
				t.Errorf("HTTP/%d: a forged trailer: %s %q", version, answer.Status, body)
			case !forged && (string(body) != "ann" || fmt.Sprint(answer.Header.Values("X-User")) != "[ann]" || answer.Header.Get("Upgrade") != ""):
				t.Errorf("HTTP/%d: %q %v", version, body, answer.Header)
			}
		}
	}
}

// What a provider sets is not what a caller has said, in any spelling that an
// application may take for the same; what frames a request stays.
func TestHeadersOfProviders(t *testing.T) {
	came := []tacithttp.Field{
		{Name: "Host", Value: "shop"}, {Name: "X_User", Value: "forged"}, {Name: "x-USER", Value: "forged"}, {Name: "X-Role", Value: "a"},
		{Name: "x_secret", Value: "s"}, {Name: "Content-Length", Value: "5"},
	}
	got := changed(came, &extauthz.Answer{
		Set:    []tacithttp.Field{{Name: "x-user", Value: "ann"}, {Name: "content_length", Value: "0"}, {Name: ":path", Value: "/"}},
		Append: []tacithttp.Field{{Name: "x-role", Value: "b"}},
		Remove: []string{"X-Secret", "host"},
	})
	want := []tacithttp.Field{
		{Name: "Host", Value: "shop"}, {Name: "X-Role", Value: "a"}, {Name: "Content-Length", Value: "5"}, {Name: "x-user", Value: "ann"}, {Name: "x-role", Value: "b"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
