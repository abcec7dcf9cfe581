package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/identity/nodeauth"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/sight/hour"
	"github.com/tacit-mesh/tacit/sight/traffic"
	"github.com/tacit-mesh/tacit/sight/uses"
	"github.com/tacit-mesh/tacit/xds/api/sight"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/server"
)

// sightOptions are what the flags say of what proxies tell.
type sightOptions struct {
	noFlows    bool
	ui         string
	policyUses string
	// For tests.
	interval     time.Duration
	usesInterval time.Duration
	listeningUI  func(address string)
}

func (o *sightOptions) sightFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.noFlows, "no-flows", false, "do not ask proxies who talks to whom: there are no last hour and no metrics of coverage")
	f.StringVar(&o.policyUses, "policy-uses", "", "without --kubernetes, the `file` in which to remember when each policy last decided about something; none if empty")
	f.StringVar(&o.ui, "ui", "", "where tacit ui finds the map: with --kubernetes a loopback `address`, such as 127.0.0.1:15017, which a port-forward reaches; else the path of a socket, which is for this user alone; none if empty")
}

func (o *sightOptions) checkUI(kubernetes bool) error {
	switch {
	case o.ui == "":
		return nil
	case o.noFlows:
		return errors.New("--ui has nothing to show with --no-flows: leave out one of them")
	case kubernetes:
		if at, err := netip.ParseAddrPort(o.ui); err != nil || !at.Addr().IsLoopback() {
			return fmt.Errorf("--ui=%s: want an address of the loopback device, such as 127.0.0.1:15017: it is not for the network", o.ui)
		}
	case !filepath.IsAbs(o.ui):
		return fmt.Errorf("--ui=%s: want the absolute path of a socket, such as /run/tacit/ui.sock", o.ui)
	}
	return nil
}

// observed is what the proxies have told of the last hour, and the mesh that it
// is about.
type observed struct {
	hour   *hour.Hour
	mesh   func() *model.Snapshot
	lacks  func(policy string) []string // of being enforced as written
	memory uses.Memory
	log    *zap.Logger
	// known says that the mesh is whole; began is since when proxies can tell,
	// and settling how long it takes until all have done so.
	known    func() bool
	began    time.Time
	settling time.Duration

	mu      sync.Mutex // guards what follows
	at      time.Time
	current []*dto.MetricFamily
}

// observe lets proxies tell what they see; nil if that is not wanted.
func (o *options) observe(g *grpc.Server, ads *server.Server, m *mesh, log *zap.Logger) *observed {
	if o.noFlows {
		return nil
	}
	s := &observed{hour: hour.New(), mesh: ads.Snapshot, lacks: m.lacks, log: log, known: m.ready, began: time.Now(), settling: settling(o.maxTTL)}
	interval := o.interval
	if interval == 0 {
		interval = hour.Interval
	}
	sight.RegisterSightServer(g, &hour.Service{Hour: s.hour, Node: nodeauth.Node, Interval: interval, Log: log})
	return s
}

// metricsAge is how old the metrics of coverage may be: they go through the
// whole hour.
const metricsAge = 15 * time.Second

// metrics are those of coverage.
func (s *observed) metrics() ([]*dto.MetricFamily, error) {
	if s == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.at) >= metricsAge {
		s.at, s.current = now, s.coverage(now).Metrics(len(s.silent(now)))
	}
	return s.current, nil
}

// coverage is that of the last hour.
func (s *observed) coverage(now time.Time) *traffic.Coverage {
	mesh := s.mesh()
	window := s.hour.Between(now.Add(-hour.Length), now)
	since := s.hour.Oldest()
	if since.IsZero() {
		since = now
	}
	c := traffic.Sum([]admin.Coverage{{
		Now: now, Since: since, Pairs: window.Pairs, Workloads: admin.CoveredWorkloads(mesh),
		Policies: admin.PolicyUses(mesh, s.uses(mesh)),
	}})
	if c.Week = s.memory.Report(now); c.Week.Since.IsZero() {
		c.Week = nil // nobody keeps it, or there is no policy
	}
	return c
}

// uses are when the policies of the mesh last decided.
func (s *observed) uses(mesh *model.Snapshot) map[string]time.Time {
	known := func(policy string) bool {
		p, _ := mesh.Policy(policy)
		return p != nil
	}
	if !mesh.PoliciesReady() {
		known = nil
	}
	return s.hour.Uses(known, time.Now())
}

// silence is how long a proxy may say nothing before what it sees counts as
// missing.
const silence = 45 * time.Second

// silent are the nodes with captured pods of which nothing has been heard.
func (s *observed) silent(now time.Time) (nodes []string) {
	heard := map[string]bool{}
	for _, n := range s.hour.Nodes(now) {
		heard[n.Name] = now.Sub(n.Last) < silence
	}
	for _, w := range s.mesh().Workloads() {
		if w.Protocol == model.ProtocolHBONE && w.Node != "" && !heard[w.Node] {
			heard[w.Node] = true
			nodes = append(nodes, w.Node)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// maxSettling is how long after the start of tacitd all proxies that are there
// have told something again, even those that have to look up its new address, or
// that could not reach it for long: see sight/report.
const maxSettling = 3 * time.Minute

// settling is not longer than a certificate's life, as a rotation waits for
// that anyway: with such short lives whoever runs the mesh is in a hurry.
func settling(maxTTL time.Duration) time.Duration { return min(maxSettling, maxTTL) }

// judges are the nodes with captured pods, and others of which something has
// been heard, with the roots that each of their proxies has told of lately. They
// are not known before every proxy that is there has had the time to tell.
func (s *observed) judges(now time.Time) (nodes []ca.Node, ok bool) {
	if !s.known() || now.Sub(s.began) < s.settling {
		return nil, false
	}
	for _, n := range s.hour.Nodes(now) {
		if now.Sub(n.Last) >= silence {
			continue
		}
		node := ca.Node{Name: n.Name}
		for _, p := range n.Proxies {
			if now.Sub(p.Last) < silence { // others are gone
				node.Proxies = append(node.Proxies, p.Roots)
			}
		}
		nodes = append(nodes, node)
	}
	for _, name := range s.silent(now) {
		nodes = append(nodes, ca.Node{Name: name})
	}
	return nodes, true
}
