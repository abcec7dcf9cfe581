package admin

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/xds/model"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server until the test ends and returns a client of its socket.
func start(t *testing.T, s *Server) (*http.Client, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	listener, err := listen(ctx, s.Path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx, listener) }()
	client := clientOf(s.Path)
	stop := func() error {
		cancel()
		client.CloseIdleConnections()
		err := <-ended
		ended <- err
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return client, stop
}

func clientOf(path string) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
}

func get(t *testing.T, client *http.Client, path string) (int, []byte) {
	t.Helper()
	response, err := client.Get("http://tacit" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body
}

func shopServer(t *testing.T) *Server {
	return &Server{
		Path: filepath.Join(t.TempDir(), "run", "admin.sock"), Node: "node-a",
		Snapshot: shop, Live: live, Ended: ended, Find: find,
		Sections: func() map[string]any {
			return map[string]any{
				"xds":    map[string]any{"connected": true, "server": "198.18.0.1:15012"},
				"pods":   []map[string]any{{"pod": "shop/frontend", "addresses": "198.18.1.1"}},
				"broken": make(chan int),
			}
		},
	}
}

func TestAnswers(t *testing.T) {
	client, _ := start(t, shopServer(t))
	pair := func(from, to string) string {
		return "/explain?" + url.Values{"from": {from}, "to": {to}}.Encode()
	}
	tests := []struct {
		golden, path string
		code         int
	}{
		{"status", "/status", 200},
		{"dump", "/dump", 200},
		{"connections", "/connections", 200},
		{"connections-from", "/connections?from=other/client", 200},
		{"connections-to-address", "/connections?to=198.18.2.1&from=shop/", 200},
		{"connections-denied", "/connections?denied", 200},
		{"connections-ended", "/connections?ended", 200},
		{"connections-none", "/connections?from=nobody/here", 200},

		{"explain-allowed", pair("shop/frontend", "shop/backend-1:8080"), 200},
		{"explain-service", pair("shop/frontend", "backend:80"), 200},
		{"explain-not-allowed", pair("other/client", "backend.shop:80"), 200},
		{"explain-wrong-port", pair("shop/frontend", "shop/backend-1:9090"), 200},
		{"explain-strict", pair("plain/legacy", "198.19.0.1:80"), 200},
		{"explain-bare-address", pair("192.0.2.7", "shop/backend-1:8080"), 200},
		{"explain-skipped-by-both", pair("shop/frontend", "shop/db:5432"), 200},
		{"explain-skipped-by-server", pair("other/client", "shop/db:5432"), 200},
		{"explain-skipped-by-client", pair("shop/frontend", "shop/backend-1:5432"), 200},
		{"explain-skipped-cidr", pair("shop/frontend", "203.0.113.9:443"), 200},
		{"explain-outside", pair("shop/frontend", "192.0.2.1:443"), 200},
		{"explain-unmeshed", pair("shop/frontend", "plain/legacy:80"), 200},
		{"explain-never-seen", pair("shop/frontend", "shop/pending:80"), 200},
		{"explain-unknown-port", pair("shop/frontend", "backend.shop.svc:81"), 200},
		{"explain-no-identity", pair("plain/legacy", "shop/mixed-1:80"), 200},
		{"explain-depends", pair("other/client", "mixed.shop:80"), 200},
		{"explain-self", pair("shop/frontend", "198.18.1.1:80"), 200},
		{"explain-id-inbound", "/explain?id=0af7651916cd43dd8448eb211c80319c", 200},
		{"explain-id-outbound", "/explain?id=1bf7651916cd43dd8448eb211c80319c", 200},
		{"explain-id-denied", "/explain?id=2cf7651916cd43dd8448eb211c80319c", 200},
		{"error-id", "/explain?id=ffffffffffffffffffffffffffffffff", 404},
		{"error-no-pod", pair("shop/nobody", "shop/db:5432"), 404},
		{"error-private", pair("other/client", "headless.shop.svc.cluster.local:80"), 404},
		{"error-headless", pair("shop/frontend", "headless:80"), 404},
		{"error-no-port", pair("shop/frontend", "shop/db"), 404},
		{"error-port-zero", pair("shop/frontend", "198.18.2.1:0"), 404},
		{"error-half", "/explain?from=shop/frontend", 400},
		{"error-both", "/explain?id=1&from=shop/frontend", 400},
	}
	for _, tt := range tests {
		t.Run(tt.golden, func(t *testing.T) {
			code, body := get(t, client, tt.path)
			if code != tt.code {
				t.Errorf("status %d, want %d: %s", code, tt.code, body)
			}
			if !json.Valid(body) {
				t.Errorf("not JSON: %s", body)
			}
			compare(t, tt.golden+".json", steady(body))
		})
	}
}

// steady replaces what differs from run to run.
func steady(body []byte) []byte {
	for _, field := range []string{"version", "started"} {
		body = regexp.MustCompile(`"`+field+`": "[^"]*"`).ReplaceAll(body, []byte(`"`+field+`": "-"`))
	}
	return body
}

func compare(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, got, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; write it anew with -update):\n%s", name, diff)
	}
}

func TestReadOnly(t *testing.T) {
	client, _ := start(t, shopServer(t))
	for _, path := range []string{"/status", "/dump", "/connections", "/explain"} {
		response, err := client.Post("http://tacit"+path, "text/plain", nil)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %s", path, response.Status)
		}
	}
	if code, _ := get(t, client, "/debug/pprof/goroutine?debug=1"); code != http.StatusOK {
		t.Errorf("/debug/pprof/goroutine: %d", code)
	}
	if code, _ := get(t, client, "/quitquitquit"); code != http.StatusNotFound {
		t.Errorf("/quitquitquit: %d", code)
	}
}

// A proxy that has just started answers too.
func TestEmpty(t *testing.T) {
	client, _ := start(t, &Server{Path: filepath.Join(t.TempDir(), "admin.sock"), Snapshot: model.NewSnapshot})
	for path, want := range map[string]int{"/status": 200, "/dump": 200, "/connections?denied": 200, "/explain?id=1": 404} {
		if code, body := get(t, client, path); code != want || !json.Valid(body) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	_, body := get(t, client, "/explain?from=192.0.2.1&to=192.0.2.2:80")
	var e Explanation
	if err := json.Unmarshal(body, &e); err != nil || e.Outcome != Denied {
		t.Errorf("before the first list: %v, %s", err, body)
	}
}

func TestSum(t *testing.T) {
	allows := verdict{endpoint: "shop/a", outcome: Allowed, summary: "yes", change: "how to deny"}
	denies := verdict{endpoint: "shop/b", outcome: Denied, summary: "no", change: "how to allow"}
	passes := verdict{endpoint: "shop/c", outcome: Unchecked, summary: "open"}
	for _, tt := range []struct {
		all     []verdict
		outcome Outcome
		summary string
		change  string
	}{
		{[]verdict{allows}, Allowed, "yes", "how to deny"},
		{[]verdict{denies, denies}, Denied, "no", "how to allow"},
		{[]verdict{allows, denies}, Depends, "It depends on the endpoint that is chosen: shop/a allowed, shop/b denied.", "how to allow"},
		{[]verdict{passes, denies, allows}, Depends, "It depends on the endpoint that is chosen: shop/c unchecked, shop/b denied, shop/a allowed.", "how to allow"},
		{[]verdict{allows, passes}, Unchecked, "It depends on the endpoint that is chosen: shop/a allowed, shop/c unchecked.", ""},
	} {
		var e explainer
		if e.sum(tt.all); e.Outcome != tt.outcome || e.Summary != tt.summary || e.Change != tt.change {
			t.Errorf("%v: %s, %q, %q", tt.all, e.Outcome, e.Summary, e.Change)
		}
	}
}

func TestRunEndsWithContext(t *testing.T) {
	s := shopServer(t)
	client, stop := start(t, s)
	if code, _ := get(t, client, "/status"); code != http.StatusOK {
		t.Fatalf("status %d", code)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Lstat(s.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}
