// Package demo walks through what the mesh does, on real programs in a small
// world, and checks every claim that it prints.
//
// Each step is one file: a request, a denial, a skipped port, a change of
// policy under a living connection, and a killed proxy. What does not belong
// here: building the world (test/world), and claims too long to watch (the
// end-to-end tests).
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/test/world"
)

// Config says where things are.
type Config struct {
	Manifests string // directory of the demo's manifests
	Programs  string // directory of the programs
	Out       io.Writer
	Color     bool // Out is a terminal that shows colours
}

// Demo is a world with everything running.
type Demo struct {
	config Config
	world  *world.World
	out    printer
	began  time.Time
}

// MapSocket is where the control plane serves the map, as its world sees it.
const MapSocket = "/run/tacit/ui.sock"

// Where its world has the manifests that are live, and the admin sockets of all
// nodes' proxies, as a pattern.
const (
	Manifests    = "/run/tacit/w1/manifests"
	AdminSockets = "/run/tacit/w1/nodes/*/proxy/admin*.sock"
)

// ProxyMetrics is where a node's proxy has its metrics, as the node sees it.
const ProxyMetrics = "http://127.0.0.1:15020/metrics"

// Logs are patterns for the logs of Tacit's programs; the applications' are beside
// them.
func Logs() []string {
	const logs = "/run/tacit/w1/logs/"
	return []string{logs + "tacitd*.log", logs + "agent-*.log", logs + "proxy-*.log"}
}

// NodeOf is the name of the node whose admin socket it is.
func NodeOf(socket string) string { return filepath.Base(filepath.Dir(filepath.Dir(socket))) }

// patience bounds each single wait: everything here takes well below it.
const patience = 20 * time.Second

// Start builds the world and starts everything in it.
func Start(ctx context.Context, c Config) (*Demo, error) {
	d := &Demo{config: c, out: printer{c.Out, c.Color}, began: time.Now()}
	d.out.title("Tacit: two nodes made of network namespaces, real programs in their pods")
	w, err := world.New(ctx, world.Config{Manifests: c.Manifests, Programs: c.Programs, ControlArgs: []string{"--ui", MapSocket}})
	if err != nil {
		return nil, err
	}
	d.world = w
	if err := w.Start(ctx); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	d.show()
	d.out.took(time.Since(d.began))
	return d, nil
}

// show lists what runs where.
func (d *Demo) show() {
	rows := [][]string{{"node", "pod", "address", "account", "programs"}}
	for _, p := range d.world.Pods() {
		account := p.ServiceAccount()
		if !strings.HasPrefix(p.Key, "shop/") {
			account = "not in the mesh"
		}
		rows = append(rows, []string{p.Node.Name, p.Key, p.Address().String(), account, programs(p)})
	}
	d.out.table(rows)
	for _, n := range d.world.Nodes() {
		d.out.say("node %s: tacit-agent (process %d), tacit-proxy (process %d, user %d, no capabilities)",
			n.Name, n.Agent().PID(), n.Proxy().PID(), world.ProxyUID)
	}
	d.out.say("control plane: tacitd --from %s (process %d)", filepath.Base(d.config.Manifests), d.world.Control().PID())
}

// programs are the names of a pod's running processes.
func programs(p *world.Pod) string {
	var names []string
	for _, app := range p.Apps() {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", app.PID()))
		if err == nil {
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return strings.Join(names, " ")
}

// Walk runs the steps. It stops at the first that does not show what it
// claims.
func (d *Demo) Walk(ctx context.Context) error {
	steps := []struct {
		title string
		run   func(context.Context) error
	}{
		{"A request between nodes is encrypted, and both sides know who the other is", d.request},
		{"A call that no policy allows is denied, with the reason", d.denial},
		{"A policy about requests decides on each of them, in the node's proxy", d.requests},
		{"A skipped port stays out of the mesh, and costs nothing", d.skip},
		{"A policy that changes closes the connections that it no longer allows", d.change},
		{"A proxy that is killed under load refuses nobody", d.kill},
	}
	for i, s := range steps {
		d.out.step(i+1, len(steps), s.title)
		began := time.Now()
		if err := s.run(ctx); err != nil {
			d.out.failed(err)
			d.showLogs()
			return fmt.Errorf("step %d (%s): %w", i+1, s.title, err)
		}
		d.out.took(time.Since(began))
	}
	d.out.title(fmt.Sprintf("All %d steps showed what they claim, in %.0f s.", len(steps), time.Since(d.began).Seconds()))
	return nil
}

// showLogs prints what the programs complained of last, when a step failed.
func (d *Demo) showLogs() {
	programs := []*world.Program{d.world.Control()}
	for _, n := range d.world.Nodes() {
		programs = append(programs, n.Agent(), n.Proxy())
	}
	for _, p := range programs {
		text, err := os.ReadFile(p.Log)
		if err != nil {
			text = []byte(err.Error())
		}
		lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(text)), "\n"), func(line string) bool {
			return line == "" || strings.Contains(line, `"level":"info"`)
		})
		const most = 4
		d.out.say("%s: %d warnings and errors", p.Name, len(lines))
		d.out.output(strings.Join(lines[max(0, len(lines)-most):], "\n"))
	}
}

// Close ends everything. Its error names what is left.
func (d *Demo) Close() error { return d.world.Close() }

// LookAround says how to explore the running demo; program is the tacit
// command as the user called it.
func (d *Demo) LookAround(program string) {
	node := d.world.Node("b")
	d.out.title("The demo stays up. Have a look around:")
	for _, hint := range []struct{ what, command string }{
		{"something that runs in a pod", "demo enter shop/frontend curl -s http://web"},
		{"a shell in a pod: try ss, ip, iptables-save, curl", "demo enter shop/frontend"},
		{"why a call is denied", "explain --demo --from shop/worker --to web.shop:80"},
		{"what goes through the proxies now; flows, top, coverage and all others that ask take --demo, too", "tap --demo"},
		{"the map of who talks to whom, for a browser on this machine", "demo ui"},
		{"the mesh out of a pod's way for a while", `bypass shop/redis --demo --for 5m --reason "a look around"`},
		{"metrics of node b's proxy", "demo enter b curl -s " + node.MetricsURL()},
		{"its log", "demo enter b tail -f " + node.Proxy().Log},
		{"an archive of what a maintainer would ask for", "support --demo"},
		{"the manifests; edit them, they are live", "demo enter b ls " + d.world.Manifests()},
		{"its end, leaving no trace", "demo end"},
	} {
		d.out.say("%s# %s%s", dim, hint.what, plain)
		d.out.say("%s %s", program, hint.command)
	}
}
