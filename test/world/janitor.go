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
	if out.Cgroup != "" {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err = errors.Join(err, Poll(ctx, func() error { return removeCgroup(out.Cgroup) }))
	}
	return 0, err
}

// removeCgroup fails with EBUSY as long as a process in it is dying; the
// kernel has no event for that in the old hierarchies.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, unix.Rmdir(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, unix.Rmdir(dir))
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
