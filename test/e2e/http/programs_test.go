package http

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/test/e2e"
)

const (
	nginx     = "198.18.2.40:8080"
	nginxHTTP = "198.18.2.40:8443" // of HTTP/2
)

// covered denies paths that begin with /deny, and covers all ports by it.
var covered = object("AuthorizationPolicy", "covered", "{action: DENY, rules: [{to: [{operation: {paths: [/deny*]}}]}]}")

func manifest(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// curl and nginx, each of which has its own idea of HTTP, agree with what was
// decided.
func TestNginxAndCurl(t *testing.T) {
	m := e2e.Start(t, covered, manifest(t, "nginx.yaml"))
	ctx := m.Context()
	if err := m.StartApps(ctx); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, version, address string }{
		{"HTTP/1.0", "--http1.0", nginx}, {"HTTP/1.1", "--http1.1", nginx}, {"HTTP/2", "--http2-prior-knowledge", nginxHTTP},
	} {
		t.Run(test.name, func(t *testing.T) {
			// One curl for each: over HTTP/2 this one cannot use a connection
			// twice, with nginx alone either.
			for path, want := range map[string]string{
				"/a?b=c": "GET shop.example /a?b=c a\n200", "/b": "GET shop.example /b a\n200",
				"/x/../deny": "403", "/deny/x": "403",
			} {
				out, err := m.Pod("mesh/client").Command(ctx, "curl", "-sS", "--path-as-is", test.version,
					"-H", "Host: shop.example", "-H", "X-Role: a", "-w", "%{http_code}", "http://"+test.address+path).CombinedOutput()
				if err != nil || !strings.HasSuffix(string(out), want) {
					t.Errorf("%s: curl says %q, %v, want %q", path, out, err, want)
				}
			}
		})
	}
}

// What nginx understands of hostile bytes is what was decided on, or nothing.
func TestNginxIsNotFooled(t *testing.T) {
	m := e2e.Start(t, covered, manifest(t, "nginx.yaml"))
	if err := m.StartApps(m.Context()); err != nil {
		t.Fatal(err)
	}
	const smuggled = "GET /deny HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, request := range []string{
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + strconv.Itoa(len(smuggled)) + "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + smuggled,
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + smuggled,
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\vchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + smuggled,
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\n" + smuggled,
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\n\n" + smuggled,
		"GET / HTTP/1.1\nHost: x\n\n" + smuggled,
		"GET http://y/deny HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://x/deny HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /%64eny HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /a/..;/../deny HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /.//deny/../deny HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAA\r\n\r\n" + smuggled,
	} {
		c, err := m.Dial("mesh/client", nginx)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, request)
		_ = c.CloseWrite()
		answer, _ := io.ReadAll(c)
		if bytes.Contains(answer, []byte("GET x /deny")) || bytes.Contains(answer, []byte(" /deny ")) {
			t.Errorf("%q reached a denied path: %q", request, answer)
		}
	}
}

// echoService sends back what it gets, and metadata as trailers.
type echoService struct {
	testgrpc.UnimplementedTestServiceServer
}

func (echoService) UnaryCall(ctx context.Context, r *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
	if r.GetResponseStatus().GetCode() != 0 {
		return nil, status.Error(codes.Code(r.GetResponseStatus().GetCode()), r.GetResponseStatus().GetMessage())
	}
	md, _ := metadata.FromIncomingContext(ctx)
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-echo", strings.Join(md.Get("x-say"), "")))
	return &testgrpc.SimpleResponse{Payload: r.GetPayload()}, nil
}

func (echoService) FullDuplexCall(s grpc.BidiStreamingServer[testgrpc.StreamingOutputCallRequest, testgrpc.StreamingOutputCallResponse]) error {
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&testgrpc.StreamingOutputCallResponse{Payload: r.GetPayload()}); err != nil {
			return err
		}
	}
}

// grpc-go works as it is, unary and streaming both ways, and is denied in its
// own terms.
func TestGRPC(t *testing.T) {
	m := e2e.Start(t, object("AuthorizationPolicy", "covered", "{action: DENY, rules: [{to: [{operation: {paths: [/grpc.testing.UnimplementedService/*]}}]}]}"))
	l, err := m.Pod("mesh/server").Listen(":8080")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(s, echoService{})
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-served
	})
	for _, pod := range []string{"mesh/client", "outside/plain"} {
		conn, err := grpc.NewClient("passthrough:///"+server, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return m.Pod(pod).Dial(ctx, address) }))
		if err != nil {
			t.Fatal(err)
		}
		ctx := m.Context()
		unary(ctx, t, testgrpc.NewTestServiceClient(conn))
		pingPong(ctx, t, testgrpc.NewTestServiceClient(conn))
		_, err = testgrpc.NewUnimplementedServiceClient(conn).UnimplementedCall(ctx, &testgrpc.Empty{})
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(status.Convert(err).Message(), "tacit-connection-id") {
			t.Errorf("%s: a denied call: %v", pod, err)
		}
		_ = conn.Close()
	}
	if n := m.Metric("b", "istio_requests_total", "request_protocol=grpc", "grpc_response_status=7"); n != 2 {
		t.Errorf("%v denials of gRPC are counted, want 2", n)
	}
}

func unary(ctx context.Context, t *testing.T, c testgrpc.TestServiceClient) {
	t.Helper()
	var trailer metadata.MD
	body := bytes.Repeat([]byte("x"), 1<<20)
	r, err := c.UnaryCall(metadata.AppendToOutgoingContext(ctx, "x-say", "hello"),
		&testgrpc.SimpleRequest{Payload: &testgrpc.Payload{Body: body}}, grpc.Trailer(&trailer))
	if err != nil || !bytes.Equal(r.GetPayload().GetBody(), body) || strings.Join(trailer.Get("x-echo"), "") != "hello" {
		t.Errorf("unary: %d bytes, trailer %v, %v", len(r.GetPayload().GetBody()), trailer, err)
	}
	_, err = c.UnaryCall(ctx, &testgrpc.SimpleRequest{ResponseStatus: &testgrpc.EchoStatus{Code: int32(codes.DataLoss), Message: "gone \u00e9"}})
	if status.Code(err) != codes.DataLoss || status.Convert(err).Message() != "gone \u00e9" {
		t.Errorf("unary with a status: %v", err)
	}
}

func pingPong(ctx context.Context, t *testing.T, c testgrpc.TestServiceClient) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		body := bytes.Repeat([]byte("x"), i*1000)
		if err := stream.Send(&testgrpc.StreamingOutputCallRequest{Payload: &testgrpc.Payload{Body: body}}); err != nil {
			t.Fatal(err)
		}
		r, err := stream.Recv()
		if err != nil || len(r.GetPayload().GetBody()) != len(body) {
			t.Fatalf("message %d: %d bytes, %v", i, len(r.GetPayload().GetBody()), err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the end of the stream: %v", err)
	}
	if stream, err = c.FullDuplexCall(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("a call that was given up: %v", err)
	}
}

// A WebSocket of another author's library works, and ends when a policy comes
// that its request would not pass.
func TestWebSocket(t *testing.T) {
	m := e2e.Start(t, covered)
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		for {
			kind, data, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, data) != nil {
				return
			}
		}
	})
	ctx := m.Context()
	c, answer, err := websocket.Dial(ctx, "ws://"+server+"/chat", &websocket.DialOptions{HTTPClient: client(t, m, "mesh/client", 1)})
	if err != nil {
		t.Fatal(err)
	}
	if answer.Body != nil {
		defer func() { _ = answer.Body.Close() }()
	}
	for i := range 10 {
		text := strings.Repeat("x", i*1000)
		if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(ctx); err != nil || string(got) != text {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	apply(t, m, "AuthorizationPolicy", "no-chat", "{action: DENY, rules: [{to: [{operation: {paths: [/chat]}}]}]}")
	if _, _, err := c.Read(ctx); err == nil {
		t.Error("the WebSocket lives on")
	}
}

// Large bodies and streams without end pass with flat memory: of 512 MB each,
// and with TACIT_LONG of 10 GB.
func TestMemoryIsFlat(t *testing.T) {
	bulk := int64(512 << 20)
	if os.Getenv("TACIT_LONG") != "" {
		bulk = 10 << 30
	}
	m := e2e.Start(t, covered)
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, _ := io.Copy(hash, r.Body)
		if n > 0 {
			_, _ = fmt.Fprintf(w, "%d %x", n, hash.Sum(nil))
			return
		}
		chunk := make([]byte, 32<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	for version := 1; version <= 2; version++ {
		c := client(t, m, "mesh/client", version)
		c.Timeout = time.Hour // so much takes its time
		before := resident(t, m)
		hash := sha256.New()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+server+"/a",
			io.TeeReader(io.LimitReader(zeros{}, bulk), hash))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := c.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if want := fmt.Sprintf("%d %x", bulk, hash.Sum(nil)); string(body) != want {
			t.Errorf("HTTP/%d: %q, want %q", version, body, want)
		}
		answer, err = c.Get("http://" + server + "/endless")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.CopyN(io.Discard, answer.Body, bulk); n != bulk {
			t.Errorf("HTTP/%d: %d bytes of a stream without end: %v", version, n, err)
		}
		_ = answer.Body.Close()
		grown := resident(t, m) - before
		t.Logf("HTTP/%d: %d MB each way, the proxy has grown by %d KB", version, bulk>>20, grown>>10)
		if grown > 48<<20 {
			t.Errorf("HTTP/%d: the proxy has grown by %d MB", version, grown>>20)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// resident is the memory of node b's proxy in bytes.
func resident(t *testing.T, m *e2e.Mesh) int {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", m.Node("b").Proxy().PID()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kb int
		if n, _ := fmt.Sscanf(lines.Text(), "VmRSS: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
