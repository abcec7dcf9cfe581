package main

import (
	"net/netip"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/jwks"
	"github.com/tacit-mesh/tacit/xds/model"
)

// newFetcher fetches the key sets of the issuers that policies name, from
// anywhere but this machine and the cluster's API.
func newFetcher(m *mesh, refresh time.Duration, log *zap.Logger) *jwks.Fetcher {
	var forbidden []netip.Prefix
	if api, err := netip.ParseAddr(os.Getenv("KUBERNETES_SERVICE_HOST")); err == nil {
		forbidden = append(forbidden, netip.PrefixFrom(api, api.BitLen()))
	}
	return jwks.New(jwks.Config{Log: log, Parse: build.PublicKeys, Changed: m.setKeys, Refresh: refresh, Forbidden: forbidden})
}

// setKeys takes the key sets that were fetched.
func (m *mesh) setKeys(sets map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(m.errs)
	m.send(m.build.SetKeySets(sets))
}

// wantKeys has the key sets fetched that policies name now.
func (m *mesh) wantKeys() {
	if m.keys == nil {
		return
	}
	var sources []jwks.Source
	for _, s := range m.build.KeySources() {
		sources = append(sources, jwks.Source{Name: s.Name(), Issuer: s.Issuer, URI: s.URI, Timeout: s.Timeout})
	}
	m.keys.Want(sources)
}

// send brings an update to the proxies, together with what could not be sent.
// Key sets may come before the first objects, and wait for them.
func (m *mesh) send(u model.Update) {
	u = merge(m.unsent, u)
	changed := len(u.Workloads) + len(u.Services) + len(u.Policies)
	removed := len(u.RemovedAddresses) + len(u.RemovedPolicies)
	if m.known && changed+removed == 0 {
		return
	}
	if err := m.ads.Apply(u); err != nil {
		m.unsent = u
		m.log.Error("nothing of the last change is in force", zap.Error(err))
		return
	}
	m.known, m.unsent = true, model.Update{}
	counts := m.build.Counts()
	m.log.Info("mesh updated", zap.Int("workloads", counts.Workloads), zap.Int("services", counts.Services),
		zap.Int("policies", counts.Policies), zap.Int("changed", changed), zap.Int("removed", removed))
}
