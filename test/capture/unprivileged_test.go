package capture

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

const (
	proxyEnv = "TACIT_CAPTURE_TEST_PROXY" // the agent's socket, in a proxy's process
	proxyUID = 54321
)

// unprivilegedProxy is a process of its own, until its input ends.
func unprivilegedProxy(socket string) int {
	r := newRelay(zap.NewNop())
	a := sockets.NewAgent(sockets.AgentConfig{Socket: socket})
	r.dial = a.Dial
	go a.Run(context.Background(), r)
	<-r.synced
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 1
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "Uid:") {
			fmt.Print(line)
		}
	}
	fmt.Println("synced")
	os.Stdin.Read(make([]byte, 1))
	return 0
}

// The whole way works for a proxy that has no privilege at all.
func TestUnprivilegedProxy(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, pod.listen(t, ":80"))
	echo(t, peer.listen(t, ":80"))
	n := newNode(t, pod)
	n.proxyUID = proxyUID
	for dir := filepath.Dir(n.dir); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.startAgent(pods.BackendAuto)
	n.await(pods.StateCaptured)

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), proxyEnv+"="+filepath.Join(n.dir, "agent.sock"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: proxyUID, Gid: proxyUID}}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && lines.Text() != "synced" {
		f := strings.Fields(lines.Text())
		if f[0] == "Uid:" && f[2] == fmt.Sprint(proxyUID) || strings.HasPrefix(f[0], "Cap") && (strings.Trim(f[1], "0") == "" || f[0] == "CapBnd:") {
			continue
		}
		t.Errorf("the proxy has privileges: %s", lines.Text())
	}
	for _, d := range []struct {
		from testNS
		to   netip.Addr
		saw  netip.Addr
	}{{pod, peer4, pod4}, {pod, peer6, pod6}, {peer, pod4, peer4}, {peer, pod6, peer6}} {
		if got, err := say(d.from.dial(t, netip.AddrPortFrom(d.to, 80)), "hello"); err != nil || got != d.saw.String()+" hello" {
			t.Errorf("to %v: %q, %v", d.to, got, err)
		}
	}
}
