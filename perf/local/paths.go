package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/report"
	"github.com/tacit-mesh/tacit/test/world"
)

// path is one way from a client to a server.
type path struct {
	report.Path
	client  *world.Pod
	host    netip.Addr        // where the client connects to
	ports   map[uint16]uint16 // and by which ports; nil: by their own
	proxies []int             // processes in between
	idle    bool              // its proxies are nobody else's, and take connections of any kind
	// beside are neighbours of the client that disturb it, by name.
	beside map[string]*path
}

const (
	pathDirect     = "direct"
	pathNear       = "direct, one node"
	pathSkipped    = "skipped"
	pathTacit      = "tacit"
	pathTacitNear  = "tacit, one node"
	pathTacitHTTP  = "tacit, HTTP"
	pathHAProxy    = "haproxy"
	pathEnvoy      = "envoy"
	pathEnvoyHTTP  = "envoy, HTTP"
	settleTimeout  = 20 * time.Second
	kindIdle       = "idle" // connections that are held
	sentDirectly   = "sent directly"
	throughProxies = "through the same proxies"
)

var comparisons = []report.Comparison{
	{Path: pathTacit}, {Path: pathTacit, Than: pathDirect}, {Path: pathSkipped, Than: pathDirect},
	{Path: pathTacitNear, Than: pathTacit}, {Path: pathTacitNear, Than: pathNear},
	{Path: pathTacitHTTP, Than: pathEnvoyHTTP},
}

// httpOnly are the ports of a path where requests are decided upon.
var httpOnly = map[uint16]uint16{load.HTTPPort: load.HTTPPort}

// makePaths starts servers and proxies. Those of Tacit are left out if its
// programs are not there. stop ends what was started here.
func makePaths(ctx context.Context, w *world.World, c config) (paths []*path, absent []string, stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	started := &processes{}
	stop = func() error {
		cancel()
		return started.wait()
	}
	for _, pod := range w.Pods() {
		if !strings.HasSuffix(pod.Key, "server") {
			continue
		}
		if err := started.start(pod.Command(ctx, "/proc/self/exe", "serve")); err != nil {
			return nil, nil, stop, err
		}
	}
	add := func(name string, class report.Class, client, server string) *path {
		p := &path{Path: report.Path{Name: name, Class: class}, client: w.Pod(client), host: w.Pod(server).Address()}
		if c.paths.MatchString(name) {
			paths = append(paths, p)
		}
		return p
	}
	direct := add(pathDirect, report.Plain, "plain/direct-client", "plain/direct-server")
	add(pathNear, report.Plain, "plain/direct-client", "plain/near-server")
	if haveTacit(c) {
		if err := w.Start(ctx); err != nil {
			return nil, nil, stop, err
		}
		a, b := w.Pod("meshed/client").Node.Proxy().PID(), w.Pod("meshed/server").Node.Proxy().PID()
		add(pathSkipped, report.Plain, "meshed/client", "meshed/server").ports = map[uint16]uint16{load.EchoPort: load.SkippedPort}
		tacit := add(pathTacit, report.Tacit, "meshed/client", "meshed/server")
		tacit.proxies, tacit.idle = []int{a, b}, true
		neighbour := &path{client: w.Pod("meshed/neighbour"), host: tacit.host}
		tacit.beside = map[string]*path{sentDirectly: direct, throughProxies: neighbour}
		add(pathTacitNear, report.Tacit, "meshed/client", "meshed/near-server").proxies = []int{a}
		http := add(pathTacitHTTP, report.Tacit, "meshed/client", "meshed/http-server")
		http.proxies, http.ports = []int{a, b}, httpOnly
	} else {
		absent = append(absent, "Tacit: no tacit-proxy in "+c.programs)
	}
	others, missing := peers(ctx)
	for _, peer := range others {
		if !c.paths.MatchString(peer.name) {
			continue
		}
		p := add(peer.name, report.Peer, "plain/"+peer.pods+"-client", "plain/"+peer.pods+"-server")
		p.host = netip.MustParseAddr("127.0.0.1")
		if p.idle = !peer.http; peer.http {
			p.ports = httpOnly
		}
		if p.proxies, err = peer.start(ctx, w, started); err != nil {
			return nil, nil, stop, err
		}
	}
	for _, p := range paths {
		if err := p.settle(ctx); err != nil {
			return nil, nil, stop, fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return paths, append(absent, missing...), stop, nil
}

func haveTacit(c config) bool {
	if c.programs == "" { // the world's own
		return true
	}
	for _, name := range []string{"tacitd", "tacit-agent", "tacit-proxy"} {
		if _, err := os.Stat(filepath.Join(c.programs, name)); err != nil {
			return false
		}
	}
	return true
}

// address is where the path's client reaches a kind of load's server, "" if
// it does not.
func (p *path) address(kind string) string {
	port := load.Port(kind)
	if p.ports != nil {
		port = p.ports[port]
	}
	if port == 0 {
		return ""
	}
	return netip.AddrPortFrom(p.host, port).String()
}

// settle waits until the path carries a connection.
func (p *path) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	kind := load.Connect
	if p.address(kind) == "" {
		kind = load.HTTP
	}
	return world.Poll(ctx, func() error {
		_, err := p.load(ctx, load.Config{Kind: kind, Conns: 1, Time: time.Millisecond})
		return err
	})
}

// load runs the load's client in the path's pod.
func (p *path) load(ctx context.Context, c load.Config) (result load.Result, err error) {
	c.Address = p.address(c.Kind)
	text, err := json.Marshal(c)
	if err != nil {
		return result, err
	}
	out, err := p.client.Command(ctx, "/proc/self/exe", "load", string(text)).Output()
	if err != nil {
		return result, fmt.Errorf("load %s: %w%s", text, err, stderrOf(err))
	}
	return result, json.Unmarshal(out, &result)
}

// hold keeps idle connections open until the function it returns is called.
func (p *path) hold(ctx context.Context, n int) (release func() error, err error) {
	text, err := json.Marshal(load.Config{Kind: kindIdle, Address: p.address(load.Echo), Conns: n})
	if err != nil {
		return nil, err
	}
	cmd := p.client.Command(ctx, "/proc/self/exe", "load", string(text))
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

// newReport says of what machine and what programs the figures are.
func newReport(c config, paths []*path, absent []string) *report.Report {
	r := &report.Report{Title: "What the mesh costs", Rounds: c.rounds}
	cpus := "all for both nodes"
	if c.splitCPUs {
		cpus = "half of them for each node"
	}
	var name unix.Utsname
	_ = unix.Uname(&name) // without it the release is empty
	r.Notes = append(r.Notes, fmt.Sprintf("%d CPUs, %s, Linux %s, %v for each measurement.", runtime.NumCPU(), cpus, unix.ByteSliceToString(name.Release[:]), c.time))
	for _, command := range []string{"haproxy -v"} {
		words := strings.Fields(command)
		if out, err := exec.Command(words[0], words[1:]...).Output(); err == nil {
			first, _, _ := strings.Cut(string(out), "\n")
			r.Notes = append(r.Notes, first)
		}
	}
	for _, text := range absent {
		r.Notes = append(r.Notes, "Absent: "+text)
	}
	for _, p := range paths {
		r.Paths = append(r.Paths, p.Path)
	}
	return r
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
