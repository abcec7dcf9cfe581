package main

import (
	"context"
	"fmt"
	"sync"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/server"
)

// mesh carries objects from the source to the proxies, and remembers what the
// certificate service has to know of them.
type mesh struct {
	settings   build.Settings
	ads        *server.Server
	statusFile string
	log        *zap.Logger

	mu     sync.Mutex
	result *build.Result // nil before the first
	errs   []error
	said   map[string]string // what the log says of each object
}

// update takes what the source found. Without objects nothing changes but
// the errors.
func (m *mesh) update(objects *build.Objects, errs []error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.errs = errs
	if objects != nil {
		m.rebuild(objects)
	}
	m.publish()
}

// followNodes keeps the status up to date as proxies come and go.
func (m *mesh) followNodes(ctx context.Context) error {
	for {
		select {
		case <-m.ads.NodesChanged():
		case <-ctx.Done():
			return ctx.Err()
		}
		m.mu.Lock()
		m.publish()
		m.mu.Unlock()
	}
}

// publish says how things are, in the status file and in the log: whoever has
// read of something in the log finds it in the file.
func (m *mesh) publish() {
	status := newStatus(m.result, m.errs, m.ads.Lacking)
	if err := status.write(m.statusFile); err != nil {
		m.log.Error("status not written", zap.Error(err))
	}
	m.say(status)
}

func (m *mesh) rebuild(objects *build.Objects) {
	result := build.Build(m.settings, *objects)
	u := result.Since(m.result)
	changed := len(u.Workloads) + len(u.Services) + len(u.Policies)
	removed := len(u.RemovedAddresses) + len(u.RemovedPolicies)
	if m.result == nil || changed+removed > 0 {
		if err := m.ads.Apply(u); err != nil {
			m.log.Error("nothing of the last change is in force", zap.Error(err))
			return
		}
		m.log.Info("mesh updated", zap.Int("workloads", len(result.Workloads)), zap.Int("services", len(result.Services)),
			zap.Int("policies", len(result.Policies)), zap.Int("changed", changed), zap.Int("removed", removed))
	}
	m.result = &result
}

// authorize lets a node have the identities of its enrolled pods.
func (m *mesh) authorize(node string, id model.Identity) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.result == nil {
		return fmt.Errorf("no manifests have been read yet")
	}
	if !m.result.Identities[node][id] {
		return fmt.Errorf("no enrolled pod of node %s has the identity %s", node, id)
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
