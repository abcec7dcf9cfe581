package world

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const holdVariable = "TACIT_WORLD_TEST_HOLD"

// TestHold is no test by itself: it is the world that TestNoTrace ends in
// several ways. It reports what it has outside and waits for its input's end.
func TestHold(t *testing.T) {
	if os.Getenv(holdVariable) == "" {
		t.Skip("only within TestNoTrace")
	}
	w := newWorld(t)
	if err := w.StartApps(t.Context()); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s\n", os.Getenv(specVariable))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// The world inside this test's own namespaces is to the inner world what the
// machine is to a world.
func TestNoTrace(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(outer *os.Process, stdin io.Closer) error
	}{
		{"normal end", func(_ *os.Process, stdin io.Closer) error { return stdin.Close() }},
		{"SIGTERM", func(outer *os.Process, _ io.Closer) error { return outer.Signal(unix.SIGTERM) }},
		{"SIGKILL", func(outer *os.Process, _ io.Closer) error { return outer.Kill() }},
		{"SIGKILL of process 1", func(outer *os.Process, _ io.Closer) error { return killChildInit(outer.Pid) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := traces(t)
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestHold$")
			cmd.Env = append(withoutVariables(os.Environ(), roleVariable, specVariable), holdVariable+"=1")
			// No cmd.StdinPipe, which ends with the outer process: the world
			// must not even notice that by itself.
			read, stdin, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _, _ = read.Close(), stdin.Close() }()
			cmd.Stdin = read
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(stdout).ReadString('\n')
			var out outside
			if err := errors.Join(err, json.Unmarshal([]byte(line), &out)); err != nil {
				t.Fatal(line, err)
			}
			if now := traces(t); len(now) == len(before) {
				t.Error("the comparison does not even see a running world")
			}
			if err := c.end(cmd.Process, stdin); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // killed, most times
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			if err := Poll(ctx, func() error {
				for _, path := range []string{out.Scratch, out.Cgroup} {
					if _, err := os.Stat(path); path != "" && err == nil {
						return fmt.Errorf("%s is still there", path)
					}
				}
				if after := traces(t); !slices.Equal(before, after) {
					return fmt.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

// traces lists processes, links and mounts as this process sees them.
func traces(t *testing.T) []string {
	t.Helper()
	var out []string
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if _, notPID := strconv.Atoi(e.Name()); notPID != nil || err != nil {
			continue
		}
		// Orphans come to us as zombies, since we are process 1 here.
		if i := strings.LastIndex(string(stat), ") "); !strings.HasPrefix(string(stat[i:]), ") Z") {
			out = append(out, "process "+e.Name())
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		out = append(out, "link "+l.Attrs().Name)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for mount := range strings.SplitSeq(string(mounts), "\n") {
		// Other tests of this machine come and go beside this one; they keep
		// namespaces as files in temporary directories.
		if !strings.Contains(mount, " "+os.TempDir()+"/") {
			out = append(out, mount)
		}
	}
	return out
}

// killChildInit kills the process 1 that the outer one waits for: its child
// in another PID namespace.
func killChildInit(outer int) error {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return err
	}
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", outer))
	if err != nil {
		return err
	}
	for _, file := range children {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for _, field := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			if ns, err := os.Readlink(procFile(pid, "ns/pid")); err == nil && ns != own {
				return syscall.Kill(pid, unix.SIGKILL)
			}
		}
	}
	return fmt.Errorf("process %d has no child in a PID namespace of its own", outer)
}
