package proxy

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/proxy/hbone"
)

// followRevocations ends live connections whose peer's certificate is taken
// back, until the context ends.
func (p *Proxy) followRevocations(ctx context.Context) error {
	if p.Revocations == nil {
		return nil
	}
	for {
		changed := p.Revocations.Changed()
		p.conns.Evaluate(p.State, time.Now())
		p.pool.Recheck(p.recheckServer)
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// recheckServer is an error if the server of a pooled connection is not to be
// trusted any more.
func (p *Proxy) recheckServer(k hbone.Key, server []*x509.Certificate) error {
	now, cancel := context.WithCancel(context.Background())
	cancel() // nothing is waited for
	pod := p.localPod(k.SourceUID)
	if pod == nil {
		return nil // its connections have been evicted
	}
	own, err := pod.claim.Get(now)
	if err != nil {
		return fmt.Errorf("the server's certificate cannot be checked again: %w", err)
	}
	return own.Revoked(server, p.Revocations)
}

// revocation asks whether a client's certificate has been taken back since the
// handshake with own; nil if none ever is.
func (p *Proxy) revocation(own *identity.Material, client []*x509.Certificate) func() bool {
	if p.Revocations == nil || own == nil {
		return nil
	}
	return func() bool { return own.Revoked(client, p.Revocations) != nil }
}
