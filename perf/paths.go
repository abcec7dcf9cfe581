package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tacit-mesh/tacit/test/world"
)

// path is one way from the client to the server.
type path struct {
	name    string
	client  *world.Pod
	echo    string // where the client connects to
	sink    string // empty: bulk is not measured on this path
	proxies []int  // processes in between
}

const (
	pathDirect  = "direct"
	pathTacit   = "tacit"
	pathHAProxy = "haproxy"
	pathSkipped = "skipped"

	settleTimeout = 20 * time.Second
)

// makePaths starts servers and proxies. Those of Tacit are left out if its
// programs are not there. stop ends what was started here.
func makePaths(ctx context.Context, w *world.World, c config) (paths []*path, stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	started := &processes{}
	stop = func() error {
		cancel()
		return started.wait()
	}
	for _, pod := range []string{"plain/direct-server", "plain/haproxy-server", "meshed/server"} {
		if err := started.start(w.Pod(pod).Command(ctx, "/proc/self/exe", "serve")); err != nil {
			return nil, stop, err
		}
	}
	direct, server := w.Pod("plain/direct-client"), w.Pod("plain/direct-server")
	paths = append(paths, &path{name: pathDirect, client: direct, echo: on(server, echoPort), sink: on(server, sinkPort)})
	if haveTacit(c) {
		if err := w.Start(ctx); err != nil {
			return nil, stop, err
		}
		client, server := w.Pod("meshed/client"), w.Pod("meshed/server")
		proxies := []int{client.Node.Proxy().PID(), server.Node.Proxy().PID()}
		paths = append(paths,
			&path{name: pathTacit, client: client, echo: on(server, echoPort), sink: on(server, sinkPort), proxies: proxies},
			&path{name: pathSkipped, client: client, echo: on(server, skippedPort)})
	} else {
		fmt.Fprintf(os.Stderr, "no tacit-proxy in %s: Tacit is left out\n", c.programs)
	}
	pids, err := startHAProxies(ctx, w, started)
	if err != nil {
		return nil, stop, err
	}
	paths = append(paths, &path{name: pathHAProxy, client: w.Pod("plain/haproxy-client"), proxies: pids,
		echo: fmt.Sprintf("127.0.0.1:%d", echoPort), sink: fmt.Sprintf("127.0.0.1:%d", sinkPort)})
	for _, p := range paths {
		if err := p.settle(ctx); err != nil {
			return nil, stop, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return paths, stop, nil
}

func on(pod *world.Pod, port uint16) string { return netip.AddrPortFrom(pod.Address(), port).String() }

func haveTacit(c config) bool {
	for _, name := range []string{"tacitd", "tacit-agent", "tacit-proxy"} {
		if _, err := os.Stat(filepath.Join(c.programs, name)); err != nil {
			return false
		}
	}
	return true
}

// settle waits until the path carries a connection.
func (p *path) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return world.Poll(ctx, func() error {
		_, err := p.load(ctx, "-kind", "connect", "-to", p.echo, "-time", "1ms")
		return err
	})
}

// hold keeps idle connections open until the function it returns is called.
func (p *path) hold(ctx context.Context, n int) (release func() error, err error) {
	cmd := p.client.Command(ctx, "/proc/self/exe", "load", "-kind", "idle", "-to", p.echo, "-conns", fmt.Sprint(n))
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
	for _, cmd := range s.running {
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) { // killed, as asked for
			errs = errors.Join(errs, err)
		}
	}
	return errs
}
