package world

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	Enter(m.Run)
}

func newWorld(t *testing.T) *World {
	t.Helper()
	// Threads that end with their goroutine are waited for by goleak, too.
	t.Cleanup(func() { goleak.VerifyNone(t) })
	w, err := New(t.Context(), Config{Manifests: "testdata"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func TestPodsReachEachOther(t *testing.T) {
	w := newWorld(t)
	client, server, onHost := w.Pod("shop/client"), w.Pod("shop/server"), w.Pod("shop/host")
	for _, c := range []struct {
		name     string
		from, to *Pod
		family   int // index of the address
	}{
		{"across nodes, IPv4", client, server, 0},
		{"across nodes, IPv6", client, server, 1},
		{"itself, IPv4", client, client, 0},
		{"itself, IPv6", client, client, 1},
		{"pod to host network, IPv4", client, onHost, 0},
		{"pod to host network, IPv6", client, onHost, 1},
		{"host network to pod on the same node", onHost, server, 0},
		{"host network to pod on the same node, IPv6", onHost, server, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := netip.AddrPortFrom(c.to.Addresses[c.family], 7000)
			l, err := c.to.Listen(to.String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			dialed, err := c.from.Dial(t.Context(), to.String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = dialed.Close() }()
			accepted, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = accepted.Close() }()
			if got, want := accepted.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), c.from.Addresses[c.family]; got != want {
				t.Errorf("the server sees the client as %s, want %s", got, want)
			}
		})
	}
}

// The control plane and the world outside of the nodes are on the backbone.
func TestBackboneReachesPods(t *testing.T) {
	w := newWorld(t)
	server := w.Pod("shop/server")
	for _, a := range server.Addresses {
		to := netip.AddrPortFrom(a, 7001).String()
		l, err := server.Listen(to)
		if err != nil {
			t.Fatal(err)
		}
		c, err := dialIn(t.Context(), w.backbone, to)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Close(), l.Close()
	}
}

func TestApps(t *testing.T) {
	w := newWorld(t)
	if err := w.StartApps(t.Context()); err != nil {
		t.Fatal(err)
	}
	server := w.Pod("shop/server").Apps()[0]
	line, err := server.WaitLog(t.Context(), 0, func(line string) bool { return strings.Contains(line, "Ready to accept") })
	if err != nil || line == "" {
		t.Fatal(line, err)
	}
	status, err := os.ReadFile(procFile(server.PID(), "status"))
	if err != nil || !bytes.Contains(status, []byte("Uid:\t65534\t65534")) {
		t.Errorf("runAsUser is not kept: %v\n%s", err, status)
	}
	out, err := w.Pod("shop/client").Command(t.Context(), "redis-cli", "-h", "198.18.2.1", "ping").CombinedOutput()
	if err != nil || string(out) != "PONG\n" {
		t.Errorf("redis-cli: %v\n%s", err, out)
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := server.WaitLog(t.Context(), 0, func(string) bool { return false }); err == nil {
		t.Error("WaitLog found a line that nobody wrote")
	}
}

func procFile(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}

func TestCommandSeesThePod(t *testing.T) {
	w := newWorld(t)
	client := w.Pod("shop/client")
	for _, c := range []struct{ name, command, want string }{
		{"host name", "hostname", "client\n"},
		{"service by its short name", "getent hosts server | tr -s ' '", "fd00:7ac1:100::1 server.shop.svc.cluster.local server.shop.svc server.shop server\n"},
		{"IPv4 name", "getent ahostsv4 server.shop.svc | head -1 | cut -d' ' -f1", "198.18.100.1\n"},
		{"addresses", "ip -br -4 addr show eth0 | cut -d@ -f1; ip -br -4 addr show eth0 | tr -s ' ' | cut -d' ' -f3", "eth0\n198.18.1.1/32\n"},
		{"exit code", "exit 3", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := client.Command(t.Context(), "sh", "-c", c.command)
			out, err := cmd.Output()
			if string(out) != c.want {
				t.Errorf("got %q, want %q (%v)", out, c.want, err)
			}
			if c.name == "exit code" && cmd.ProcessState.ExitCode() != 3 {
				t.Errorf("exit code %d, want 3", cmd.ProcessState.ExitCode())
			}
		})
	}
}

const extraPod = `
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: shop}
spec:
  nodeName: NODE
  containers: [{name: sleep, image: none, command: [sleep, infinity]}]
status:
  podIPs: [{ip: 198.18.3.1}]
`

func TestApplyAndDelete(t *testing.T) {
	w := newWorld(t)
	client := w.Pod("shop/client")
	pod := func(name, node string) string {
		return strings.NewReplacer("NAME", name, "NODE", node).Replace(extraPod)
	}
	reachable := func(p *Pod) {
		t.Helper()
		l, err := p.Listen("198.18.3.1:7000")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		c, err := client.Dial(t.Context(), "198.18.3.1:7000")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	if err := w.Apply(pod("extra", "a")); err != nil {
		t.Fatal(err)
	}
	if err := w.StartApps(t.Context()); err != nil {
		t.Fatal(err)
	}
	app := w.Pod("shop/extra").Apps()[0]
	reachable(w.Pod("shop/extra"))
	if err := w.Delete("Pod", "shop/extra"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-app.Ended():
	default:
		t.Error("the program of a deleted pod runs on")
	}
	if w.Pod("shop/extra") != nil {
		t.Error("a deleted pod is still there")
	}
	if files, err := os.ReadDir(w.NetnsDir()); err != nil || len(files) != 2 {
		t.Errorf("%d namespace files, want 2 (%v)", len(files), err)
	}
	// The address moves to another pod, on a node that is new.
	if err := w.Apply(pod("successor", "c")); err != nil {
		t.Fatal(err)
	}
	reachable(w.Pod("shop/successor"))
}

func TestApplyRefusesWhatItCannotRead(t *testing.T) {
	w := newWorld(t)
	for _, text := range []string{
		"kind: Pod\nmetadata: {name: x}\n",
		"kind: Pod\nmetadata: {name: x, namespace: y}\nspec: {nodename: a}\n",
		"kind: [\n",
	} {
		if err := w.Apply(text); err == nil {
			t.Errorf("accepted %q", text)
		}
	}
}

func TestUnprivilegedProgram(t *testing.T) {
	w := newWorld(t)
	node := w.Node("a")
	spec := execSpec{Netns: node.netns.path, Cgroup: node.cgroup, User: ProxyUID, Group: ProxyUID, Unprivileged: true}
	out, err := spec.command(t.Context(), "cat", []string{"/proc/self/status", "/proc/self/cgroup"}).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	none := "0000000000000000"
	want := []string{"CapInh:\t" + none, "CapPrm:\t" + none, "CapEff:\t" + none, "CapBnd:\t" + none, "CapAmb:\t" + none,
		"NoNewPrivs:\t1", "Uid:\t15001\t15001\t15001\t15001", "Gid:\t15001\t15001\t15001\t15001", "Groups:\t \n"}
	if node.cgroup != "" {
		want = append(want, ":"+cgroupPath(node.cgroup)+"\n")
	}
	for _, s := range want {
		if !strings.Contains(string(out), s) {
			t.Errorf("missing %q in\n%s", s, out)
		}
	}
}

func TestSplitCPUs(t *testing.T) {
	w, err := New(t.Context(), Config{Manifests: "testdata", SplitCPUs: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	allowed := func(pod string) string {
		out, err := w.Pod(pod).Command(t.Context(), "nproc").Output()
		if err != nil {
			t.Fatal(err)
		}
		list, err := w.Pod(pod).Command(t.Context(), "grep", "Cpus_allowed_list", "/proc/self/status").Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.TrimSpace(string(out)), strconv.Itoa(max(1, runtime.NumCPU()/2)); got != want {
			t.Errorf("%s has %s CPUs, want %s", pod, got, want)
		}
		return string(list)
	}
	if a, b := allowed("shop/client"), allowed("shop/server"); a == b && runtime.NumCPU() > 1 {
		t.Errorf("both nodes have %s", a)
	}
}

func TestCloseNamesLeftovers(t *testing.T) {
	w, err := New(t.Context(), Config{Manifests: "testdata"})
	if err != nil {
		t.Fatal(err)
	}
	// Not started by the world's own means, so not ended by them either.
	cmd := w.Pod("shop/client").Command(t.Context(), "cat")
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
	defer func() { _, _ = stdin.Close(), cmd.Wait() }()
	if _, err := stdin.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 1)); err != nil { // now it is cat
		t.Fatal(err)
	}
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "in pod shop/client") {
		t.Errorf("got %v, want the leftover process named", err)
	}
}

func TestWaitLogSeesLinesAsTheyCome(t *testing.T) {
	w := newWorld(t)
	w.mu.Lock()
	p, err := w.start("echo", execSpec{}, "sh", "-c", "echo first; sleep 0.2; echo second; printf half; sleep 60")
	w.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	is := func(want string) func(string) bool { return func(line string) bool { return line == want } }
	if _, err := p.WaitLog(t.Context(), 0, is("first")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.WaitLog(t.Context(), 0, is("second")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if line, err := p.WaitLog(ctx, p.Mark(), func(string) bool { return true }); err == nil {
		t.Errorf("found %q behind the mark", line)
	}
}

// The demo's manifests are ordinary ones, and their programs come up.
func TestDemoManifests(t *testing.T) {
	w, err := New(t.Context(), Config{Manifests: "../../deploy/demo"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := w.StartApps(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, pod, command, want string }{
		{"nginx", "shop/frontend", "curl -sS http://198.18.2.10:8080/", "Hello from the web pod on node b.\n"},
		{"nginx over IPv6", "shop/frontend", "curl -sS 'http://[fd00:7ac1:2::10]:8080/'", "Hello from the web pod on node b.\n"},
		{"redis", "shop/worker", "redis-cli -h 198.18.2.20 ping", "PONG\n"},
		{"postgres by its headless name", "shop/reports", "psql -h postgres -U postgres -Atc 'SELECT 6*7'", "42\n"},
	} {
		out, err := w.Pod(c.pod).Command(t.Context(), "sh", "-c", c.command).CombinedOutput()
		if err != nil || string(out) != c.want {
			t.Errorf("%s: %v: got %q, want %q", c.name, err, out, c.want)
		}
	}
}
