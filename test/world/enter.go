package world

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// One program plays four parts, told apart by this variable:
//
//	(none)   the outer one: the machine's namespaces; starts the others, waits
//	init     process 1 of the world's namespaces: runs the caller's code
//	exec     becomes a program inside a pod or on a node
//	janitor  removes what namespaces cannot: when the outer one has ended,
//	         by SIGKILL included, its pipe ends and it cleans up
const (
	roleVariable = "TACIT_WORLD_ROLE"
	specVariable = "TACIT_WORLD_SPEC"
	roleInit     = "init"
	roleExec     = "exec"
	roleJanitor  = "janitor"

	runDir      = "/run/tacit"
	programsDir = runDir + "/bin"
)

// outside is what the world has outside of its namespaces, for the time it
// lives: a control group for proxies and a directory for programs just built.
type outside struct {
	Cgroup  string // directory; empty if the machine lets us make none
	Scratch string
}

// Enter runs the calling program again in PID, mount, network, UTS and IPC
// namespaces of its own and there calls run; it never returns. It must come
// first in main or TestMain: the same program with the same arguments also
// plays the world's other parts. When the program dies, by SIGKILL too, all
// that it started and made dies with it.
//
// Each of packages, such as "./cmd/tacitd", is built before, in the module
// of the working directory, with the race detector if the caller has it.
func Enter(run func() int, packages ...string) {
	switch os.Getenv(roleVariable) {
	case roleInit:
		os.Exit(report(enterInit(run)))
	case roleExec:
		os.Exit(report(127, becomeProgram()))
	case roleJanitor:
		os.Exit(report(janitor()))
	}
	os.Exit(report(enterOuter(packages)))
}

func report(code int, err error) int {
	if err == nil {
		return code
	}
	fmt.Fprintln(os.Stderr, "world:", err)
	return max(code, 1)
}

func enterOuter(packages []string) (int, error) {
	if os.Getuid() != 0 {
		return 1, errors.New("network namespaces need root: run as root")
	}
	// Pdeathsig is tied to the thread that forks: it must live as long as
	// this process does.
	runtime.LockOSThread()
	out, err := makeOutside()
	if err != nil {
		return 1, err
	}
	stopJanitor, err := startJanitor(out)
	if err != nil {
		return 1, err
	}
	defer stopJanitor()
	if err := buildPrograms(out.Scratch, packages); err != nil {
		return 1, err
	}
	cmd := self(roleInit, out)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // signals of a terminal arrive once, by way of us
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP)
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("start in new namespaces (are they allowed here?): %w", err)
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended meanwhile
		}
	}()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return 1, err
	}
	return max(cmd.ProcessState.ExitCode(), -cmd.ProcessState.ExitCode()), nil
}

// self is this very program in another role.
func self(role string, spec any) *exec.Cmd {
	text, err := json.Marshal(spec)
	if err != nil {
		panic(err) // our own plain structs
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args
	cmd.Env = append(os.Environ(), roleVariable+"="+role, specVariable+"="+string(text))
	return cmd
}

func readSpec(spec any) error {
	if err := json.Unmarshal([]byte(os.Getenv(specVariable)), spec); err != nil {
		return fmt.Errorf("%s: %w", specVariable, err)
	}
	return nil
}

func enterInit(run func() int) (int, error) {
	if os.Getpid() != 1 { // started by the one that is, as a fuzzing worker is
		return run(), nil
	}
	var out outside
	if err := readSpec(&out); err != nil {
		return 1, err
	}
	if err := mountInit(); err != nil {
		return 1, err
	}
	// From here on the scratch directory is not needed any more.
	if err := os.CopyFS(programsDir, os.DirFS(out.Scratch)); err != nil {
		return 1, fmt.Errorf("copy programs: %w", err)
	}
	if err := os.RemoveAll(out.Scratch); err != nil {
		return 1, err
	}
	// Programs with the race detector would sleep for a second at their end.
	if _, ok := os.LookupEnv("GORACE"); raceEnabled && !ok {
		if err := os.Setenv("GORACE", "atexit_sleep_ms=50"); err != nil {
			return 1, err
		}
	}
	return run(), nil
}

func mountInit() error {
	unix.Umask(0o022) // files are for programs of several users
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// A /run of our own: programs leave pid files, sockets and locks there.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	// Running programs see the namespaces of later pods, and lose the earlier.
	if err := unix.Mount("", "/run", "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share /run: %w", err)
	}
	for _, d := range []string{runDir, "/run/netns", "/run/lock"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func buildPrograms(dir string, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	top, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module (go list -m): %w", err)
	}
	args := []string{"build", "-o", dir + string(filepath.Separator)}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, packages...)...)
	cmd.Dir = string(top[:max(len(top)-1, 0)])
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %v: %w\n%s", packages, err, text)
	}
	return nil
}

// IsInit reports whether a process's environment, as /proc shows it, is that
// of process 1 of a world.
func IsInit(environ []byte) bool {
	return slices.Contains(strings.Split(string(environ), "\x00"), roleVariable+"="+roleInit)
}
