package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFlags(t *testing.T) {
	const complete = "--node n --from f --netns-dir d --run-dir r --proxy-uid 1 "
	for _, test := range []struct{ args, want string }{
		{"", "--node is missing: "},
		{"", "--proxy-uid is missing: "},
		{"--node n --from f --run-dir r --proxy-uid 1", "--netns-dir is missing: "},
		{complete + "--proxy-uid=-2", "--proxy-uid=-2: want the number of a user"},
		{complete + "--iptables ebpf", "--iptables: "},
		{complete + "--skips listed", "--skips=listed needs --skip-ports"},
		{complete + "--skips listed --iptables ebpf", "2 flags are wrong"},
		{complete + "--kubernetes", "--from and --kubernetes are two sources of pods"},
		{complete + "--remove-taint", "--remove-taint has no effect without --kubernetes"},
		{"--kubernetes --run-dir r --proxy-uid 1", "--node is missing: "},
		{"--kubernetes --node n --run-dir r --proxy-uid 1 --kubeconfig /nonexistent/kubeconfig", "/nonexistent/kubeconfig"},
		{"--zds s --run-dir r", "--proxy-uid is missing: "},
		{complete + "--zds s", "--zds is a source of pods by itself"},
		{"--zds s --run-dir r --proxy-uid 1 --cni-bin-dir b --cni-conf-dir c", "--cni-bin-dir has no effect with --zds"},
		{"cleanup", "--netns-dir is missing: "},
		{"cleanup --kubernetes", "--node is missing: "},
	} {
		cmd := cli.Prepare(command())
		cmd.SetArgs(strings.Fields(test.args))
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.args, err, test.want)
		}
	}
}

const manifests = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tacit.mesh/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: n, containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 198.18.1.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: shop}
spec: {nodeName: other, containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 198.18.1.2}]}
`

// An agent whose only pod has a file that is no network namespace says so.
func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"manifests.yaml": manifests, "shop_web": "no namespace"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	listening, ended := make(chan string, 1), make(chan error, 1)
	o := options{
		node: "n", from: dir, netnsDir: dir, runDir: filepath.Join(dir, "run"), proxyUID: os.Geteuid(), iptables: "auto",
		skips: model.SkipSettings{Mode: model.SkipsAny}, metrics: "127.0.0.1:0", listening: func(addr string) { listening <- addr },
	}
	ctx, cancel := context.WithCancel(t.Context())
	failures, log := failureLog()
	go func() { ended <- o.run(ctx, log) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	}()
	var address string
	select {
	case address = <-listening:
	case err := <-ended:
		t.Fatal(err)
	}
	select {
	case <-failures:
	case <-time.After(20 * time.Second):
		t.Fatal("the pod never failed")
	}
	text := scrape(t, "http://"+address+"/metrics")
	for _, want := range []string{
		`tacit_agent_pods{state="pending"} 1`, `tacit_agent_pods{state="captured"} 0`, `tacit_agent_pods{state="left"} 0`,
		"tacit_agent_pods_failing 1", "tacit_agent_pods_refused 0", "tacit_agent_pods_with_gaps 0", "tacit_agent_repairs_total 0",
		"tacit_agent_proxies_connected 0", "tacit_agent_sockets_handed_out_total 0", "tacit_agent_socket_failures_total 0",
	} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

func scrape(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatal(fmt.Errorf("%s: %w", response.Status, err))
	}
	return string(body)
}

// failureLog is a log whose first line about a failing pod can be waited for.
func failureLog() (<-chan struct{}, *zap.Logger) {
	failures := make(chan struct{}, 1)
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(io.Discard), zapcore.ErrorLevel)
	return failures, zap.New(core, zap.Hooks(func(zapcore.Entry) error {
		select {
		case failures <- struct{}{}:
		default:
		}
		return nil
	}))
}
