package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// execSpec says what a program's process is to be before it becomes the
// program: every field left empty stays as the world has it.
type execSpec struct {
	Netns        string // file
	Hostname     string
	Mounts       []mount
	Dir          string
	Cgroup       string // directory
	CPUs         []int
	User, Group  int
	Unprivileged bool // no capability in any set, nor a way to get one
	Path         string
	Args         []string
	Env          []string
}

// mount shows From, a file or directory, at To, for this program only.
type mount struct{ From, To string }

// command is this very program, which [becomeProgram] turns into name.
func (s execSpec) command(ctx context.Context, name string, args []string) *exec.Cmd {
	s.Path, s.Args = name, append([]string{name}, args...)
	template := self(roleExec, s)
	cmd := exec.CommandContext(ctx, template.Path)
	cmd.Args, cmd.Env = template.Args, template.Env
	return cmd
}

// Attach is a command line to run in a pod ("NAMESPACE/NAME") or on a node
// ("NAME") of the first world of another process: pid is its process 1, as
// the caller sees it. self are the arguments with which the calling program
// gets to [Enter].
func Attach(ctx context.Context, pid int, self []string, where string, command ...string) *exec.Cmd {
	dir := filepath.Join(runDir, "w1")
	spec := execSpec{Netns: filepath.Join(dir, "nodes", where, "netns"), Hostname: where}
	if namespace, pod, ok := strings.Cut(where, "/"); ok {
		name := namespace + "_" + pod
		spec.Netns, spec.Hostname = filepath.Join(dir, "netns", name), pod
		spec.Mounts = podMounts(filepath.Join(dir, "pods", name))
	}
	own, err := os.Executable()
	enter := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(pid),
		"--mount", "--pid", "--uts", "--ipc", "--net", "--", own}, self...)...)
	enter.Env = spec.command(ctx, command[0], command[1:]).Env
	enter.Err = errors.Join(enter.Err, err)
	return enter
}

// becomeProgram plays the exec part: it returns only on failure. What it sets
// belongs to one thread, and that thread becomes the program.
func becomeProgram() error {
	runtime.LockOSThread()
	var s execSpec
	if err := readSpec(&s); err != nil {
		return err
	}
	if err := s.join(); err != nil {
		return fmt.Errorf("run %s: %w", s.Path, err)
	}
	path, err := exec.LookPath(s.Path)
	if err != nil {
		return err
	}
	if s.Dir != "" {
		if err := os.Chdir(s.Dir); err != nil {
			return err
		}
	}
	env := append(withoutVariables(os.Environ(), roleVariable, specVariable), s.Env...)
	if err := s.drop(); err != nil {
		return fmt.Errorf("run %s: %w", s.Path, err)
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, s.Args, env))
}

// join enters the program's namespaces and control group.
func (s execSpec) join() error {
	if s.Cgroup != "" {
		if err := os.WriteFile(filepath.Join(s.Cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join control group: %w", err)
		}
	}
	if len(s.CPUs) > 0 {
		var set unix.CPUSet
		for _, cpu := range s.CPUs {
			set.Set(cpu)
		}
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("bind to CPUs %v: %w", s.CPUs, err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("own mounts and host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts to itself: %w", err)
	}
	for _, m := range s.Mounts {
		if _, err := os.Stat(m.To); errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("mount at %s: the machine has nothing at that path", m.To)
		}
		if err := unix.Mount(m.From, m.To, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.From, m.To, err)
		}
	}
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("host name: %w", err)
		}
	}
	if s.Netns == "" {
		return nil
	}
	fd, err := unix.Open(s.Netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", s.Netns, err)
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", s.Netns, err)
	}
	return nil
}

// drop gives up what the program must not have.
func (s execSpec) drop() error {
	if s.Unprivileged {
		// The bounding set first: it takes a capability to shrink it.
		for c := uintptr(0); ; c++ {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				break // EINVAL: the kernel knows no more of them
			}
		}
	}
	if s.User != 0 || s.Group != 0 {
		err := errors.Join(unix.Setgroups(nil), unix.Setresgid(s.Group, s.Group, s.Group), unix.Setresuid(s.User, s.User, s.User))
		if err != nil {
			return fmt.Errorf("become user %d: %w", s.User, err)
		}
	}
	if !s.Unprivileged {
		return nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

func withoutVariables(env []string, names ...string) []string {
	var out []string
next:
	for _, e := range env {
		for _, n := range names {
			if len(e) > len(n) && e[:len(n)+1] == n+"=" {
				continue next
			}
		}
		out = append(out, e)
	}
	return out
}
