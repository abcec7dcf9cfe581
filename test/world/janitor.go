package world

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoots are where a control group may be made, the best first: the
// unified hierarchy alone, beside the old ones, or the old pids hierarchy.
var cgroupRoots = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"}

func makeOutside() (outside, error) {
	scratch, err := os.MkdirTemp("", "tacit-world-")
	if err != nil {
		return outside{}, err
	}
	out := outside{Scratch: scratch}
	for _, root := range cgroupRoots {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue // not a hierarchy
		}
		dir := filepath.Join(root, filepath.Base(scratch))
		if os.Mkdir(dir, 0o755) == nil {
			out.Cgroup = dir
			break
		}
	}
	return out, nil
}

// cgroupPath is a control group's name as /proc/PID/cgroup shows it.
func cgroupPath(dir string) string {
	for _, root := range []string{cgroupRoots[1], cgroupRoots[2], cgroupRoots[0]} {
		if rest, ok := strings.CutPrefix(dir, root+"/"); ok {
			return "/" + rest
		}
	}
	return ""
}

// startJanitor starts the process that cleans up when this one has ended.
// The function it returns lets it do so and waits for it.
func startJanitor(out outside) (func(), error) {
	cmd := self(roleJanitor, out)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signal of a terminal ends it
	alive, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start janitor: %w", err)
	}
	return func() {
		_ = alive.Close()
		_ = cmd.Wait()
	}, nil
}

func janitor() (int, error) {
	var out outside
	if err := readSpec(&out); err != nil {
		return 1, err
	}
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return 1, err
	}
	err := os.RemoveAll(out.Scratch)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, root := range Hierarchies() {
		dir := filepath.Join(root, filepath.Base(out.Scratch))
		err = errors.Join(err, Poll(ctx, func() error { return RemoveControlGroup(dir) }))
	}
	return 0, err
}

// Hierarchies are the machine's hierarchies of control groups: the unified one
// alone, or the old ones and, if it has it, the unified one beside them.
func Hierarchies() []string {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil {
		return []string{root}
	}
	var out []string
	groups, _ := filepath.Glob(root + "/*/cgroup.procs") // the pattern is well-formed
	for _, g := range groups {
		dir := filepath.Dir(g)
		if st, err := os.Lstat(dir); err == nil && st.IsDir() { // else a second name of one
			out = append(out, dir)
		}
	}
	return out
}

// ControlGroup is a name that is this world's alone: control groups of that
// name are removed, with all below them, when the world has ended.
func ControlGroup() (string, error) {
	var out outside
	if err := readSpec(&out); err != nil {
		return "", err
	}
	return filepath.Base(out.Scratch), nil
}

// RemoveControlGroup removes a control group and all below it. It fails with
// EBUSY as long as a process in one is dying; the kernel has no event for that
// in the old hierarchies.
func RemoveControlGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, RemoveControlGroup(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return err
	}
	return unix.Rmdir(dir)
}

// Poll tries until check succeeds or the context ends: for states that offer
// no event.
func Poll(ctx context.Context, check func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil { // later ones only say that time is up
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, last: %w", context.Cause(ctx), cmp.Or(last, err))
		case <-tick.C:
		}
	}
}
