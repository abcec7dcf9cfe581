package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/workloadapi"
	"github.com/tacit-mesh/tacit/xds/model"
)

func (o *options) checkWorkloadAPI() error {
	switch {
	case o.workloadAPI == "" && o.spiffeID != "":
		return errors.New("--spiffe-id has no effect without --workload-api")
	case o.workloadAPI == "":
		return nil
	case !filepath.IsAbs(o.workloadAPI):
		return fmt.Errorf("--workload-api=%s: want the absolute path of the socket, such as /run/spire/sockets/agent.sock", o.workloadAPI)
	}
	if _, err := o.ownIdentity(); err != nil {
		return fmt.Errorf("--spiffe-id: %w", err)
	}
	return nil
}

func (o *options) ownIdentity() (model.Identity, error) {
	namespace := cmp.Or(o.namespace, "tacit-system")
	return model.ParseIdentity(cmp.Or(o.spiffeID, "spiffe://"+o.settings.TrustDomain+"/ns/"+namespace+"/sa/tacitd"))
}

// ownCertificate is what tacitd proves itself with to proxies: of its own CA, or
// from a Workload API.
func (p *platform) ownCertificate(o options, log *zap.Logger) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	if o.workloadAPI == "" {
		return p.authority.ServerCertificate(o.serverName)
	}
	id, err := o.ownIdentity()
	if err != nil {
		return nil, err
	}
	source, err := workloadapi.New(workloadapi.Config{Socket: o.workloadAPI})
	if err != nil {
		return nil, err
	}
	store := identity.NewStore(source, identity.WithFailures(func(s identity.Status) {
		log.Warn("tacitd's own certificate", zap.Uint64("failures", s.Failures), zap.Duration("left", max(0, time.Until(s.NotAfter()))), zap.Error(s.Err))
	}))
	subject := identity.Subject{Identity: id}
	store.Acquire(subject)
	p.tasks = append(p.tasks, func(ctx context.Context) error {
		return errors.Join(store.Run(ctx), source.Close())
	})
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		m, err := store.Get(hello.Context(), subject) // for as long as a handshake may take
		if err != nil {
			return nil, err
		}
		if err := m.Leaf.VerifyHostname(o.serverName); err != nil {
			return nil, fmt.Errorf("certificate of %s (has its entry the DNS name of --server-name?): %w", id, err)
		}
		return m.Certificate, nil
	}, nil
}
