package local

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/report"
	"github.com/tacit-mesh/tacit/perf/suite"
	"github.com/tacit-mesh/tacit/test/world"
)

// The names of the paths of others.
const (
	pathHAProxy = "haproxy"
	pathEnvoy   = "envoy"
	pathZtunnel = "ztunnel"
	pathLinkerd = "linkerd2-proxy"
)

const settleTimeout = 20 * time.Second

// httpOnly are the ports of a path where requests are decided upon.
var httpOnly = map[uint16]uint16{load.HTTPPort: load.HTTPPort, load.GRPCPort: load.GRPCPort, load.FramesPort: load.FramesPort}

// maker makes the paths, and what they need.
type maker struct {
	Config
	world        *world.World
	wanted       *regexp.Regexp // paths
	measurements *regexp.Regexp
	programs     []suite.Program // that there are
	started      processes
	deciding     bool // policies about requests are in force
	paths        []*suite.Path
	absent       []string
	derived      []string // those whose figures are taken from others
}

// make starts servers and proxies. What is not there is left out, and said.
func (m *maker) make(ctx context.Context) error {
	m.findPrograms()
	if err := m.startServers(ctx); err != nil {
		return err
	}
	direct := m.add(route{Path: report.Path{Name: suite.Direct, Class: report.Plain}, client: "plain/direct-client", server: "plain/direct-server", programs: true})
	m.add(route{Path: report.Path{Name: suite.DirectNear, Class: report.Plain}, client: "plain/direct-client", server: "plain/near-server"})
	if m.haveTacit() {
		if err := m.world.Start(ctx); err != nil {
			return err
		}
		m.addTacit(direct)
	} else {
		m.absent = append(m.absent, "Tacit: no tacit-proxy in "+m.Programs)
	}
	for _, peer := range m.peers(ctx) {
		if !m.wanted.MatchString(peer.name) {
			continue
		}
		pids, err := m.startPeer(ctx, peer)
		if err != nil {
			return fmt.Errorf("%s: %w", peer.name, err)
		}
		r := route{Path: report.Path{Name: peer.name, Class: report.Peer}, client: "plain/" + peer.pods + "-client", server: "plain/" + peer.pods + "-server",
			proxies: pids, programs: !peer.http, own: !peer.http}
		if peer.http {
			r.ports = httpOnly
		}
		m.add(r)
	}
	m.derive(pathLinkerd, "it does not run without Linkerd's control plane")
	if err := m.addZtunnel(ctx); err != nil {
		return err
	}
	for _, p := range m.paths {
		if err := p.Settle(ctx, settleTimeout); err != nil {
			return err
		}
	}
	return nil
}

func (m *maker) addTacit(direct *suite.Path) {
	a, b := m.world.Pod("meshed/client").Node.Proxy().PID(), m.world.Pod("meshed/server").Node.Proxy().PID()
	ours := func(name string) report.Path { return report.Path{Name: name, Class: report.Tacit} }
	m.add(route{Path: report.Path{Name: suite.Skipped, Class: report.Plain}, client: "meshed/client", server: "meshed/server",
		ports: map[uint16]uint16{load.EchoPort: load.SkippedPort}})
	beside := route{client: "meshed/neighbour", server: "meshed/server"}
	tacit := m.add(route{Path: ours(suite.Tacit), client: "meshed/client", server: "meshed/server", proxies: []int{a, b}, own: true, programs: true, prepare: m.decideOn(false)})
	tacit.Beside = map[string]*suite.Path{suite.SentDirectly: direct, suite.ThroughProxies: m.path(beside)}
	m.add(route{Path: ours(suite.TacitNear), client: "meshed/client", server: "meshed/near-server", proxies: []int{a}})
	m.add(route{Path: ours(suite.BesideHTTP), client: "meshed/client", server: "meshed/server", proxies: []int{a, b}, ports: map[uint16]uint16{load.EchoPort: load.EchoPort}, prepare: m.decideOn(true)})
	m.add(route{Path: ours(suite.TacitHTTP), client: "meshed/client", server: "meshed/http-server", proxies: []int{a, b}, ports: httpOnly, prepare: m.decideOn(true)})
}

func (m *maker) haveTacit() bool {
	if m.Programs == "" { // the world's own
		return true
	}
	return !slices.ContainsFunc([]string{"tacitd", "tacit-agent", "tacit-proxy"}, func(name string) bool {
		_, err := os.Stat(filepath.Join(m.Programs, name))
		return err != nil
	})
}

// route says what a path is made of.
type route struct {
	report.Path
	client, server string            // pods
	ports          map[uint16]uint16 // and by which ports; nil: by their own
	proxies        []int             // processes in between
	own            bool              // they are nobody else's, and take connections of any kind
	programs       bool              // others' servers are there as well
	prepare        func(context.Context) error
}

// add makes a path, to be measured if it is wanted.
func (m *maker) add(r route) *suite.Path {
	p := m.path(r)
	if m.wanted.MatchString(p.Name) {
		m.paths = append(m.paths, p)
	}
	return p
}

func (m *maker) path(r route) *suite.Path {
	from := runner{self: m.Self, client: m.world.Pod(r.client)}
	address := func(kind string) string { return m.address(r, kind) }
	p := &suite.Path{Path: r.Path, Proxies: len(r.proxies), CountsCalls: r.Class == report.Tacit, Prepare: r.prepare,
		Takes: func(kind string) bool { return address(kind) != "" },
		Load: func(ctx context.Context, c load.Config) (load.Result, error) {
			c.Address = address(c.Kind)
			if i := m.program(c.Kind); i >= 0 {
				return from.program(ctx, m.programs[i], c)
			}
			return from.load(ctx, c)
		}}
	if len(r.proxies) > 0 {
		p.Usage = func(context.Context) (suite.Usage, error) { return suite.Processes(r.proxies) }
	}
	if r.own {
		p.Hold = func(ctx context.Context, n int) (func() error, error) { return from.hold(ctx, address(load.Echo), n) }
	}
	return p
}

// address is where the route's client reaches a kind of load's server, "" if
// it does not.
func (m *maker) address(r route, kind string) string {
	port := load.Port(kind)
	if i := m.program(kind); i >= 0 {
		if port = m.programs[i].Port; port != load.HTTPPort && !r.programs {
			return ""
		}
	} else if slices.ContainsFunc(suite.Programs, func(p suite.Program) bool { return p.Name == kind }) {
		return "" // it is not on this machine
	}
	if r.ports != nil {
		port = r.ports[port]
	}
	if port == 0 {
		return ""
	}
	return netip.AddrPortFrom(m.world.Pod(r.server).Address(), port).String()
}

// isServer says whether a pod is to be one.
func isServer(pod *world.Pod) bool { return strings.HasSuffix(pod.Key, "server") }
