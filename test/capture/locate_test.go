package capture

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

const podUID = "3f1d7c9a-0b1e-4c55-9d64-0a3f5f0e8b11"

// newGroup makes a control group as the kubelet would for a container.
func newGroup(t *testing.T, names ...string) string {
	t.Helper()
	var dir string
	for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/pids"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil && dir == "" {
			dir = root
		}
	}
	if dir == "" || os.Geteuid() != 0 {
		t.Skip("needs root and control groups")
	}
	for _, name := range append([]string{fmt.Sprintf("tacit-test-%d", os.Getpid())}, names...) {
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			t.Skipf("control groups cannot be made here: %v", err)
		}
		made := dir
		t.Cleanup(func() {
			eventually(t, 10*time.Second, "the group empty", func() bool { return os.Remove(made) == nil })
		})
	}
	return dir
}

// process runs inside a namespace and a group until it is killed.
func process(t *testing.T, ns testNS, group string) *os.Process {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd.Process) })
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	return cmd.Process
}

func end(p *os.Process) {
	p.Kill()
	p.Wait()
}

// The namespace is that of a process of the pod's which holds its addresses,
// by a path that lasts if there is one.
func TestLocate(t *testing.T) {
	own, err := netns.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for name, groups := range map[string][]string{
		"cgroupfs": {"kubepods", "burstable", "pod" + podUID, "0a1b"},
		"systemd":  {"kubepods.slice", "kubepods-burstable.slice", "kubepods-burstable-pod" + strings.ReplaceAll(podUID, "-", "_") + ".slice", "cri-containerd-0a.scope"},
	} {
		t.Run(name, func(t *testing.T) {
			pod, peer := newPair(t)
			group := newGroup(t, groups...)
			locate := func(pins string) (string, error) { // a new one has no memory
				return pods.NewLocator("/proc", pins).Locate(pods.Pod{Pod: newNode(t, pod).pod.Pod, RuntimeUID: podUID})
			}
			if path, err := locate(""); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("without a process: %q, %v", path, err)
			}
			process(t, testNS{NS: own}, group)
			if path, err := locate(""); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "the node's own") {
				t.Errorf("with a process of the node: %q, %v", path, err)
			}
			process(t, peer, group)
			if path, err := locate(""); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "does not hold the pod's address") {
				t.Errorf("with a process elsewhere: %q, %v", path, err)
			}
			p := process(t, pod, group)
			want := fmt.Sprintf("/proc/%d/ns/net", p.Pid)
			if path, err := locate(""); err != nil || path != want {
				t.Errorf("got %q, %v, want %s", path, err, want)
			}
			if path, err := locate(filepath.Dir(pod.path)); err != nil || path != pod.path {
				t.Errorf("got %q, %v, want what lasts, %s", path, err, pod.path)
			}
		})
	}
}

// A pod of which one process has ended is the same pod still; one whose last
// process has ended is gone.
func TestProcessesComeAndGo(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, peer.listen(t, ":80"))
	group := newGroup(t, "kubepods", "pod"+podUID, "0a1b")
	n := newNode(t, pod)
	n.pod.NetNS, n.pod.RuntimeUID = "", podUID
	n.locate = pods.NewLocator("/proc", "").Locate
	first := process(t, pod, group)
	n.start(pods.BackendAuto)
	c := pod.dial(t, netip.AddrPortFrom(peer4, 80))
	if _, err := say(c, "hello"); err != nil || n.relay.out.Load() != 1 {
		t.Fatalf("not captured: %v", err)
	}
	second := process(t, pod, group)
	end(first)
	stays(t, 3*time.Second, "captured, by another process", func() bool {
		_, err := say(c, "still here")
		return err == nil && n.set.Status()[0].State == pods.StateCaptured
	})
	end(second)
	eventually(t, 10*time.Second, "gone with its last process", func() bool {
		n.relay.mu.Lock()
		defer n.relay.mu.Unlock()
		return slices.Contains(n.relay.removed, "uid-1")
	})
}
