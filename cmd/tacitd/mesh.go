package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/peer"

	"github.com/tacit-mesh/tacit/internal/audit"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/jwks"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/server"
)

// statusInterval is the least time between two statuses of a cluster: to work
// them out, all workloads are gone through.
const statusInterval = time.Second

// mesh carries objects from the source to the proxies, and remembers what the
// certificate service has to know of them.
type mesh struct {
	ads        *server.Server
	statusFile string
	interval   time.Duration              // between statuses
	tell       func([]build.PolicyStatus) // another taker of statuses; nil for none
	audit      *audit.Log                 // of bypasses and revocations; nil for none
	log        *zap.Logger
	stale      chan struct{} // holds one value when the status may be another
	ends       chan struct{} // holds one value when what ends next may be another

	mu      sync.Mutex
	build   *build.Mesh
	keys    *jwks.Fetcher  // nil in tests of other parts
	objects *build.Objects // as last read, where all of them are read at once
	now     time.Time      // of the last look at the clock that changed something
	known   bool           // the first objects are in
	unsent  model.Update   // what could not be sent
	errs    []error
	said    map[string]string // what the log says of each object
	audited map[string]string // what the audit log says of each record
	// notEnforced is how many policies are not enforced as written, by the
	// last status.
	notEnforced int
	lacking     map[string][]string // how far they are not, by their keys
}

func newMesh(settings build.Settings, ads *server.Server, log *zap.Logger) *mesh {
	return &mesh{ads: ads, log: log, build: build.New(settings), stale: make(chan struct{}, 1), ends: make(chan struct{}, 1)}
}

// update takes what a source found that reads all objects at once. Without
// objects nothing changes but the errors.
func (m *mesh) update(objects *build.Objects, errs []error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(errs)
	if objects != nil {
		m.apply(objects.Since(m.objects))
		m.objects = objects
	}
}

// change takes what a source found that follows objects one by one.
func (m *mesh) change(c build.Changes, errs []error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(errs)
	m.apply(c)
}

// note has the status published once mu is free again. It comes before what
// is sent, so that whoever has seen a change finds it in the last status, too.
func (m *mesh) note(errs []error) {
	m.errs = errs
	select {
	case m.stale <- struct{}{}:
	default:
	}
}

func (m *mesh) apply(c build.Changes) {
	m.now = time.Now().Round(0)
	u := m.build.Advance(m.now) // what came late may be over already
	m.send(merge(u, m.build.Apply(c)))
	select {
	case m.ends <- struct{}{}:
	default:
	}
	m.wantKeys()
}

// merge is one update that does what two do, one after the other.
func merge(a, b model.Update) model.Update {
	b.Workloads = append(without(a.Workloads, b.Workloads, b.RemovedAddresses, func(w *model.Workload) string { return w.UID }), b.Workloads...)
	b.Services = append(without(a.Services, b.Services, b.RemovedAddresses, (*model.Service).Key), b.Services...)
	b.Policies = append(without(a.Policies, b.Policies, b.RemovedPolicies, (*model.Policy).Key), b.Policies...)
	// Removals come before additions: those of what has come back do no harm.
	b.RemovedAddresses = slices.Concat(a.RemovedAddresses, b.RemovedAddresses)
	b.RemovedPolicies = slices.Concat(a.RemovedPolicies, b.RemovedPolicies)
	return b
}

func without[T any](list, changed []*T, removed []string, key func(*T) string) (out []*T) {
	for _, v := range list {
		if !slices.Contains(removed, key(v)) && !slices.ContainsFunc(changed, func(c *T) bool { return key(c) == key(v) }) {
			out = append(out, v)
		}
	}
	return out
}

// followStatus says how things are whenever that may have changed, also as
// proxies come and go, and a last time at the end.
func (m *mesh) followStatus(ctx context.Context) error {
	limit := rate.NewLimiter(rate.Every(m.interval), 1)
	for {
		select {
		case <-m.stale:
		case <-m.ads.NodesChanged():
		case <-ctx.Done():
			select {
			case <-m.stale:
				m.publish()
			default:
			}
			return ctx.Err()
		}
		if err := limit.Wait(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("wait for the next status: %w", err)
		}
		m.publish()
	}
}

// publish says how things are, to the cluster, in the status file and in the
// log: whoever has read of something in the log finds it in the file.
func (m *mesh) publish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var now *build.Mesh
	if m.known {
		now = m.build
	}
	status := newStatus(now, m.errs, m.ads.Lacking)
	m.notEnforced, m.lacking = 0, map[string][]string{}
	for _, p := range status.statuses {
		if key := p.Policy(); key != "" && (!p.Enforced || len(p.Messages) > 0) {
			m.lacking[key] = p.Messages
		}
	}
	for _, p := range status.Policies {
		if !p.Enforced || len(p.Messages) > 0 {
			m.notEnforced++
		}
	}
	m.auditRecords(status)
	if m.tell != nil && now != nil {
		m.tell(status.statuses)
	}
	if err := status.write(m.statusFile); err != nil {
		m.log.Error("status not written", zap.Error(err))
	}
	m.say(status)
}

// lacks says how far a policy is not enforced as written.
func (m *mesh) lacks(policy string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lacking[policy]
}

// ready says that proxies are sent the mesh.
func (m *mesh) ready() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known
}

// authorize lets a node have the identities of its enrolled pods. A token that was
// stolen is of no use within a pod.
func (m *mesh) authorize(ctx context.Context, node string, id model.Identity) error {
	var from netip.AddrPort
	if p, ok := peer.FromContext(ctx); ok {
		from, _ = netip.ParseAddrPort(p.Addr.String()) // invalid: of no pod
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.known:
		return errors.New("which pods there are is not known yet")
	case !m.build.Permits(node, id):
		return fmt.Errorf("no enrolled pod of node %s has the identity %s", node, id)
	case m.build.Poses(from.Addr(), id):
		return fmt.Errorf("the pod at %s asks for the identity %s, not the node's proxy", from.Addr(), id)
	}
	return nil
}

// say logs what is new in the status of each object.
func (m *mesh) say(s *status) {
	now := map[string]string{}
	for _, line := range s.lines() {
		now[line.key] = line.text
		if m.said[line.key] == line.text {
			continue
		}
		if line.good {
			m.log.Info(line.text)
		} else {
			m.log.Warn(line.text)
		}
	}
	for key := range m.said {
		if _, ok := now[key]; !ok {
			m.log.Info("resolved or gone: " + key)
		}
	}
	m.said = now
}
