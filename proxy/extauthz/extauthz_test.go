package extauthz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tacit-mesh/tacit/proxy/kept"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

// authorizer decides by the header x-role.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	asked chan *authv3.CheckRequest
}

func dial(ctx context.Context, _, network, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

func option(name, value string, add bool) *corev3.HeaderValueOption {
	o := &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}}
	if add {
		o.Append = wrapperspb.Bool(true) //nolint:staticcheck // what providers send
	}
	return o
}

func (a *authorizer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.asked <- r
	switch r.GetAttributes().GetRequest().GetHttp().GetHeaders()["x-role"] {
	case "admin":
		return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{option("X-User", "ann", false), option("x-tag", "b", true)}, HeadersToRemove: []string{"x-role"},
			ResponseHeadersToAdd: []*corev3.HeaderValueOption{option("Set-Cookie", "s=1", true), option("x-by", "p", false)},
		}}}, nil
	case "slow":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_Unauthorized}, Body: "who are you?", Headers: []*corev3.HeaderValueOption{option("x-why", "role", false)},
		}},
	}, nil
}

func declared(t *testing.T, protocol model.ProviderProtocol, at net.Addr) *model.Provider {
	t.Helper()
	a := netip.MustParseAddrPort(at.String())
	return &model.Provider{Name: "p", Protocol: protocol, Host: a.Addr().String(), Port: a.Port(), Timeout: 10 * time.Second}
}

func question(role string) *Question {
	return &Question{
		ID: "1", Method: "GET", Target: "/a?b=c", Host: "shop", Protocol: "HTTP/1.1",
		Headers: []policy.HeaderField{{Name: "X-Role", Value: role}, {Name: "A", Value: "1"}, {Name: "a", Value: "2"}},
		Source:  netip.MustParseAddrPort("198.18.1.10:1000"), Destination: netip.MustParseAddrPort("198.18.2.10:80"),
		Principal: "spiffe://td/ns/a/sa/b",
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &authorizer{asked: make(chan *authv3.CheckRequest, 10)}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, a)
	go func() { _ = s.Serve(l) }()
	defer s.Stop()
	c := New(dial)
	defer c.Close()
	to := declared(t, model.ProviderGRPC, l.Addr())

	answer, err := c.Ask(t.Context(), to, question("admin"))
	want := &Answer{
		Allowed: true, Remove: []string{"x-role"},
		Set: []policy.HeaderField{{Name: "x-user", Value: "ann"}}, Append: []policy.HeaderField{{Name: "x-tag", Value: "b"}},
		RespondSet: []policy.HeaderField{{Name: "x-by", Value: "p"}}, RespondAdd: []policy.HeaderField{{Name: "set-cookie", Value: "s=1"}},
	}
	if diff := cmp.Diff(want, answer); err != nil || diff != "" {
		t.Errorf("allowed: %v\n%s", err, diff)
	}
	asked := (<-a.asked).GetAttributes()
	h := asked.GetRequest().GetHttp()
	if h.GetPath() != "/a?b=c" || h.GetHost() != "shop" || h.GetMethod() != "GET" || h.GetHeaders()["a"] != "1,2" ||
		asked.GetSource().GetPrincipal() != "spiffe://td/ns/a/sa/b" || asked.GetSource().GetAddress().GetSocketAddress().GetPortValue() != 1000 {
		t.Errorf("asked about %v", asked)
	}

	answer, err = c.Ask(t.Context(), to, question("user"))
	want = &Answer{Status: 401, Body: "who are you?", Headers: []policy.HeaderField{{Name: "x-why", Value: "role"}}}
	if diff := cmp.Diff(want, answer); err != nil || diff != "" {
		t.Errorf("denied: %v\n%s", err, diff)
	}

	to.Timeout = 50 * time.Millisecond
	if _, err := c.Ask(t.Context(), to, question("slow")); err == nil {
		t.Error("no error from a provider that takes too long")
	}
	s.Stop()
	if _, err := c.Ask(t.Context(), to, question("admin")); err == nil {
		t.Error("no error from a provider that is gone")
	}
}

func TestHTTP(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", fmt.Sprint(r.Method, " ", r.Host, " ", r.URL, " ", r.Header.Get("A"), r.Header.Get("X-Extra")))
		w.Header().Set("X-Secret", "1")
		switch r.Header.Get("X-Role") {
		case "admin":
		case "broken":
			w.WriteHeader(http.StatusBadGateway)
		case "moved":
			w.Header().Set("Location", "/login")
			w.WriteHeader(http.StatusFound)
		default:
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, "no")
		}
	}))
	defer s.Close()
	c := New(dial)
	defer c.Close()
	to := declared(t, model.ProviderHTTP, s.Listener.Addr())
	to.PathPrefix = "/check"
	to.IncludeRequestHeaders = []model.StringMatch{{Value: "x-role"}}
	to.IncludeAdditionalHeaders = map[string]string{"X-Extra": "e"}
	to.HeadersToUpstreamOnAllow = []model.StringMatch{{Value: "x-seen"}}
	to.HeadersToDownstreamOnOK = []model.StringMatch{{Kind: model.MatchPrefix, Value: "x-sec"}}

	answer, err := c.Ask(t.Context(), to, question("admin"))
	want := &Answer{Allowed: true, Set: []policy.HeaderField{{Name: "x-seen", Value: "GET shop /check/a?b=c e"}}, RespondSet: []policy.HeaderField{{Name: "x-secret", Value: "1"}}}
	if diff := cmp.Diff(want, answer); err != nil || diff != "" {
		t.Errorf("allowed: %v\n%s", err, diff)
	}
	answer, err = c.Ask(t.Context(), to, question("user"))
	if err != nil || answer.Allowed || answer.Status != 403 || answer.Body != "no" || len(answer.Headers) != 0 {
		t.Errorf("denied: %+v, %v", answer, err)
	}
	answer, err = c.Ask(t.Context(), to, question("moved"))
	if err != nil || answer.Status != 302 || len(answer.Headers) != 1 || answer.Headers[0].Value != "/login" {
		t.Errorf("redirected: %+v, %v", answer, err)
	}
	if _, err = c.Ask(t.Context(), to, question("broken")); err == nil {
		t.Error("a provider that fails has decided")
	}
}

// A provider sees what there is of the body, as text or as bytes, and whether
// that is all, whatever the caller says about it.
func TestBodies(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &authorizer{asked: make(chan *authv3.CheckRequest, 10)}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, a)
	go func() { _ = s.Serve(l) }()
	defer s.Stop()
	type seen struct{ method, body, partial string }
	overHTTP := make(chan seen, 10)
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		overHTTP <- seen{r.Method, string(body), strings.Join(r.Header.Values("X-Envoy-Auth-Partial-Body"), ",")}
	}))
	defer web.Close()
	c := New(dial)
	defer c.Close()
	for _, test := range []struct {
		name, body    string
		partial       bool
		text          string
		size          int64
		partialHeader string
	}{
		{"none", "", false, "", -1, ""},
		{"whole", "hello", false, "hello", 5, "false"},
		{"part", "hello", true, "hello", -1, "true"},
		{"no text", "a\xffb", false, "a!b", 3, "false"},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := question("user")
			q.Method, q.Body, q.Partial = "POST", []byte(test.body), test.partial
			q.Headers = append(q.Headers, policy.HeaderField{Name: "X-Envoy-Auth-Partial-Body", Value: "forged"})
			for _, asBytes := range []bool{false, true} {
				to := declared(t, model.ProviderGRPC, l.Addr())
				to.BodyAsBytes = asBytes
				if _, err := c.Ask(t.Context(), to, q); err != nil {
					t.Fatal(err)
				}
				got := (<-a.asked).GetAttributes().GetRequest().GetHttp()
				text, raw := test.text, ""
				if asBytes {
					text, raw = "", test.body
				}
				if got.GetBody() != text || string(got.GetRawBody()) != raw || got.GetSize() != test.size || got.GetHeaders()[partialBody] != test.partialHeader {
					t.Errorf("asked about %v", got)
				}
			}
			to := declared(t, model.ProviderHTTP, web.Listener.Addr())
			to.IncludeRequestHeaders = []model.StringMatch{{Kind: model.MatchPrefix, Value: "x-"}}
			if _, err := c.Ask(t.Context(), to, q); err != nil {
				t.Fatal(err)
			}
			if got, want := <-overHTTP, (seen{"POST", test.body, test.partialHeader}); got != want {
				t.Errorf("over HTTP it saw %q, want %q", got, want)
			}
		})
	}
}

// Beyond its bound a client gives up the connection that was asked over the
// longest time ago, but none over which a question is under way.
func TestConnectionsAreBounded(t *testing.T) {
	c := New(dial)
	defer c.Close()
	to := &model.Provider{Name: "gate", Protocol: model.ProviderHTTP, Host: "192.0.2.1", Port: 80}
	get := func(as string) *provider {
		t.Helper()
		p, done, err := c.provider(t.Context(), to, as)
		if err != nil {
			t.Fatal(err)
		}
		done()
		return p
	}
	busy, done, err := c.provider(t.Context(), to, "busy")
	if err != nil {
		t.Fatal(err)
	}
	first, second := get("0"), get("1")
	for i := 3; i < maxProviders; i++ {
		get(strconv.Itoa(i))
	}
	if get("0") != first {
		t.Error("the first is gone before there are too many")
	}
	get("another")
	if n := c.conns.Len(); n != maxProviders {
		t.Errorf("%d connections", n)
	}
	if get("0") != first {
		t.Error("the one in use is gone")
	}
	if get("1") == second {
		t.Error("the one that was used the longest time ago is still there")
	}
	if get("busy") != busy {
		t.Error("the one over which a question is under way is gone")
	}
	done()
}

// With a provider for each of its questions nobody takes the connections that
// others need: it waits for its own as long as for an answer.
func TestOneAskerLeavesConnectionsToOthers(t *testing.T) {
	release := make(chan struct{})
	stuck := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer stuck.Close()
	defer close(release)
	c := New(dial)
	defer c.Close()
	to := declared(t, model.ProviderHTTP, stuck.Listener.Addr())
	asking, leave := context.WithCancel(t.Context())
	var questions sync.WaitGroup
	defer questions.Wait()
	defer leave()
	ask := func(as string, timeout time.Duration, n int) error {
		each := *to
		each.Timeout, each.ServerName = timeout, strconv.Itoa(n) // another one, as far as the client knows
		q := question("user")
		q.As = as
		_, err := c.Ask(asking, &each, q)
		return err
	}
	for i := range maxProvidersEach {
		questions.Go(func() { _ = ask("greedy", time.Minute, i) })
	}
	for c.conns.Len() < maxProvidersEach {
		runtime.Gosched()
	}
	if err := ask("greedy", 50*time.Millisecond, maxProvidersEach); !errors.Is(err, kept.ErrBusy) {
		t.Errorf("one more of the same: %v, want %v", err, kept.ErrBusy)
	}
	if err := ask("another", 50*time.Millisecond, 0); err == nil || errors.Is(err, kept.ErrBusy) {
		t.Errorf("another one: %v, want that the provider is too late", err)
	}
}

// However many questions of some pods are not answered, those of another are
// asked: of a provider in the mesh, which is asked as each pod, and of one
// outside of it, which is asked as nobody in particular.
func TestUnansweredQuestionsHoldUpNobodyElse(t *testing.T) {
	const unanswered = 1000
	asked := make(chan *authv3.CheckRequest, unanswered+1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	overGRPC := grpc.NewServer()
	authv3.RegisterAuthorizationServer(overGRPC, &authorizer{asked: asked})
	go func() { _ = overGRPC.Serve(l) }()
	defer overGRPC.Stop()
	overHTTP := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- nil
		if r.Header.Get("X-Role") == "slow" {
			<-r.Context().Done()
		}
	}))
	defer overHTTP.Close()
	for _, test := range []struct {
		name     string
		provider *model.Provider
		as       func(pod int) string
	}{
		{"in the mesh", declared(t, model.ProviderGRPC, l.Addr()), strconv.Itoa},
		{"outside of it", declared(t, model.ProviderHTTP, overHTTP.Listener.Addr()), func(int) string { return "" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := New(dial)
			defer c.Close()
			ctx, leave := context.WithCancel(t.Context())
			var questions sync.WaitGroup
			defer questions.Wait()
			defer leave()
			ask := func(pod int, role string, timeout time.Duration) (*Answer, error) {
				to := *test.provider
				to.Timeout, to.IncludeRequestHeaders = timeout, []model.StringMatch{{Value: "x-role"}}
				q := question(role)
				q.As = test.as(pod)
				return c.Ask(ctx, &to, q)
			}
			for i := range unanswered {
				questions.Go(func() { _, _ = ask(i%4, "slow", time.Hour) })
			}
			for i := range unanswered {
				select {
				case <-asked:
				case <-time.After(time.Minute):
					t.Fatalf("asked %d of %d questions", i, unanswered)
				}
			}
			if answer, err := ask(4, "admin", time.Minute); err != nil || !answer.Allowed {
				t.Errorf("%+v, %v", answer, err)
			}
			<-asked
		})
	}
}
