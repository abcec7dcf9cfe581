// Package local makes the ways between a client and a server that are compared
// on one machine: two nodes made of network namespaces, with nothing, Tacit, or
// pairs of others' proxies with mutual TLS in between.
//
// All get the same: CPUs and as many threads, TLS 1.3 with AES-128-GCM and
// P-256 certificates, TCP_NODELAY, connections that iptables redirects to the
// proxies, as to sidecars, the same client and server. Not alike are,
// at Tacit's expense, that it authorizes each connection by policy (the others
// take whatever their CA has signed) and exchanges keys that
// withstand quantum computers; and at the others', that they make a TLS
// connection for each of the client's, where Tacit's share one.
//
// What does not belong here: what is measured (perf/suite).
package local

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/perf/report"
	"github.com/tacit-mesh/tacit/perf/suite"
	"github.com/tacit-mesh/tacit/test/world"
)

//go:embed manifests
var manifests embed.FS

// Config says what to make.
type Config struct {
	// Programs is the directory of tacitd, tacit-agent and tacit-proxy; empty
	// for what [world.Enter] was asked to build.
	Programs string
	// Self are the words behind this program's own name by which it becomes
	// the load's server and client: followed by "serve", or by "load" and a
	// configuration. See [load.Serve] and [load.Command].
	Self []string
	// SplitCPUs gives each node CPUs of its own, as far as there are enough.
	SplitCPUs bool
	// EncryptLocal has Tacit encrypt within a node as well.
	EncryptLocal bool
	// Congestion is the congestion control of all TCP, such as reno; empty for the
	// machine's own.
	Congestion string
	// Ztunnel is the file of this program, empty if there is none to compare
	// with.
	Ztunnel string
}

// Measure measures everything in a world made for that. It needs to be in
// [world.Enter].
func Measure(ctx context.Context, c Config, o suite.Options) (r *report.Report, err error) {
	w, err := newWorld(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	m := &maker{Config: c, world: w, wanted: o.Paths, measurements: o.Measurements}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		err = errors.Join(err, m.started.wait())
	}()
	if err := m.make(ctx); err != nil {
		return nil, err
	}
	r = newReport(c, o, m)
	if err := suite.Run(ctx, o, m.paths, r); err != nil {
		return nil, err
	}
	for _, name := range m.derived {
		suite.Derive(r, name)
	}
	suite.Judge(r)
	return r, nil
}

// mostConnections of one pod are a load here, not an attack.
const mostConnections = 16_000

func newWorld(ctx context.Context, c Config) (w *world.World, err error) {
	dir, err := os.MkdirTemp("", "tacit-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }() // the world has a copy
	if err := os.CopyFS(dir, manifests); err != nil {
		return nil, err
	}
	wc := world.Config{Manifests: filepath.Join(dir, "manifests"), Programs: c.Programs, SplitCPUs: c.SplitCPUs,
		ProxyArgs: []string{"--connections-per-pod", strconv.Itoa(mostConnections)}}
	if c.EncryptLocal {
		wc.ProxyArgs = append(wc.ProxyArgs, "--direct-local=false")
	}
	if w, err = world.New(ctx, wc); err != nil || c.Congestion == "" {
		return w, err
	}
	for _, pod := range w.Pods() {
		if err := pod.Do(func() error { return os.WriteFile(congestionFile, []byte(c.Congestion), 0) }); err != nil {
			return nil, errors.Join(fmt.Errorf("congestion control %s, see sysctl net.ipv4.tcp_allowed_congestion_control: %w", c.Congestion, err), w.Close())
		}
	}
	return w, nil
}

const congestionFile = "/proc/sys/net/ipv4/tcp_congestion_control"

// newReport says of what machine and what programs the figures are.
func newReport(c Config, o suite.Options, m *maker) *report.Report {
	r := &report.Report{Title: "What the mesh costs", Rounds: o.Rounds}
	cpus := "all for both nodes"
	if c.SplitCPUs {
		cpus = "half of them for each node"
	}
	var name unix.Utsname
	_ = unix.Uname(&name) // without it the release is empty
	congestion := c.Congestion
	if congestion == "" {
		own, _ := os.ReadFile(congestionFile) // without it the name is empty
		congestion = strings.TrimSpace(string(own))
	}
	r.Notes = append(r.Notes, fmt.Sprintf("%d CPUs, %s, Linux %s, TCP's congestion control %s, %v for each measurement.", runtime.NumCPU(), cpus, unix.ByteSliceToString(name.Release[:]), congestion, o.Time))
	if out, err := exec.Command("haproxy", "-v").Output(); err == nil {
		first, _, _ := strings.Cut(string(out), "\n")
		r.Notes = append(r.Notes, first)
	}
	for _, text := range m.absent {
		r.Notes = append(r.Notes, "Absent: "+text)
	}
	for _, p := range m.paths {
		r.Paths = append(r.Paths, p.Path)
	}
	return r
}
