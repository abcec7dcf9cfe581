package local

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/suite"
	"github.com/tacit-mesh/tacit/test/world"
)

// Servers of others, with everything in memory and nothing asked of a caller:
// what is measured is the way to them.
const (
	runRedis    = `exec redis-server --port 6379 --bind '*' '-::*' --protected-mode no --save '' --dir /tmp --loglevel warning`
	runPostgres = `
PATH=$(echo /usr/lib/postgresql/*/bin | tr ' ' ':'):$PATH
export PGDATA=$1
install -d -o postgres -g postgres -m 700 "$PGDATA"
exec setpriv --reuid=postgres --regid=postgres --init-groups sh -ec '
initdb --username=postgres --auth=trust --no-sync >/dev/null
printf "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n" >>"$PGDATA/pg_hba.conf"
exec postgres -c listen_addresses="*" -c unix_socket_directories= -c fsync=off -c shared_buffers=16MB -c log_min_messages=fatal'`
)

// databases are the servers of others by their ports.
var databases = map[uint16]string{suite.RedisPort: runRedis, suite.PostgresPort: runPostgres}

// findPrograms finds out which of others' loads there are, of those wanted.
func (m *maker) findPrograms() {
	for _, p := range suite.Programs {
		if !m.measurements.MatchString(p.Load()) {
			continue
		}
		missing := slices.IndexFunc([]string{p.Name, p.Server}, func(name string) bool { return name != "" && !installed(name) })
		if missing >= 0 {
			m.absent = append(m.absent, fmt.Sprintf("%s: %s is not installed", p.Name, []string{p.Name, p.Server}[missing]))
			continue
		}
		m.programs = append(m.programs, p)
	}
}

// installed looks where Debian keeps PostgreSQL's programs, too.
func installed(name string) bool {
	if _, err := exec.LookPath(name); err == nil {
		return true
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	return err == nil && len(found) > 0
}

// program is the place of a program in those that there are, by its kind of
// load; -1 if it is none of them.
func (m *maker) program(kind string) int {
	return slices.IndexFunc(m.programs, func(p suite.Program) bool { return p.Name == kind })
}

// startServers starts the load's server in each pod that is to be one, and
// others' beside it.
func (m *maker) startServers(ctx context.Context) error {
	for _, pod := range m.world.Pods() {
		if !isServer(pod) || m.Ztunnel == "" && strings.Contains(pod.Key, pathZtunnel) {
			continue
		}
		if err := m.started.start(pod.Command(ctx, "/proc/self/exe", append(slices.Clone(m.Self), "serve")...)); err != nil {
			return err
		}
		if strings.Contains(pod.Key, "near") || strings.Contains(pod.Key, "http") {
			continue
		}
		for _, p := range m.programs {
			script, data := databases[p.Port], fmt.Sprintf("%s/data-%s-%d", m.world.Dir(), strings.ReplaceAll(pod.Key, "/", "-"), p.Port)
			if script == "" {
				continue
			}
			if err := m.started.start(pod.Command(ctx, "sh", "-ec", script, "sh", data)); err != nil {
				return err
			}
			if err := listening(ctx, pod, p.Port); err != nil {
				return fmt.Errorf("%s's server in pod %s: %w", p.Name, pod.Key, err)
			}
		}
	}
	return nil
}

// serverTimeout is how long a server of others may take to listen: a database
// that is made first takes some time on a busy machine.
const serverTimeout = 2 * time.Minute

func listening(ctx context.Context, pod *world.Pod, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	return world.Poll(ctx, func() error {
		conn, err := pod.Dial(ctx, fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// runner runs loads in a client's pod.
type runner struct {
	self   []string
	client *world.Pod
}

func (r runner) command(ctx context.Context, c load.Config) (*exec.Cmd, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return r.client.Command(ctx, "/proc/self/exe", append(slices.Clone(r.self), "load", string(text))...), nil
}

// load runs the load's own client.
func (r runner) load(ctx context.Context, c load.Config) (result load.Result, err error) {
	cmd, err := r.command(ctx, c)
	if err != nil {
		return result, err
	}
	out, err := cmd.Output()
	if err != nil {
		return result, fmt.Errorf("load %+v: %w%s", c, err, stderrOf(err))
	}
	return result, json.Unmarshal(out, &result)
}

// program runs another's.
func (r runner) program(ctx context.Context, p suite.Program, c load.Config) (load.Result, error) {
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil {
		return load.Result{}, err
	}
	cmd := r.client.Command(ctx, p.Name, p.Arguments(host, port, c.Time)...)
	cmd.Stdin = strings.NewReader(p.Input)
	out, err := cmd.Output()
	if err != nil {
		return load.Result{}, fmt.Errorf("%s: %w%s", p.Name, err, stderrOf(err))
	}
	return p.Read(string(out), c.Time)
}

// hold keeps idle connections open until the function it returns is called.
func (r runner) hold(ctx context.Context, address string, n int) (release func() error, err error) {
	cmd, err := r.command(ctx, load.Config{Kind: load.Idle, Address: address, Conns: n})
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	release = func() error { return errors.Join(stdin.Close(), cmd.Wait()) }
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("idle connections: %w", err), release())
	}
	return release, nil
}

// stderrOf is what a command that failed had to say.
func stderrOf(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return ": " + string(exit.Stderr)
	}
	return ""
}

// processes are those that are ended at the end.
type processes struct{ running []*exec.Cmd }

func (s *processes) start(cmd *exec.Cmd) error {
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	s.running = append(s.running, cmd)
	return nil
}

// wait is for their end, after their context's.
func (s *processes) wait() error {
	var errs error
	for _, cmd := range slices.Backward(s.running) {
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) { // killed, as asked for
			errs = errors.Join(errs, err)
		}
	}
	return errs
}
