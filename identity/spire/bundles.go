package spire

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
)

// bundles are the roots of trust domains as the agent has last said.
type bundles struct {
	mu      sync.Mutex
	roots   map[string][]*x509.Certificate
	err     error
	changed chan struct{}
}

func newBundles() *bundles {
	return &bundles{err: errors.New("no bundle has come yet"), changed: make(chan struct{})}
}

// get gives the roots, which are nobody's to change, a channel that is closed
// when there is news, and why there are no roots or no newer ones.
func (b *bundles) get() (roots map[string][]*x509.Certificate, changed <-chan struct{}, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.roots, b.changed, b.err
}

func (b *bundles) last() map[string][]*x509.Certificate {
	roots, _, _ := b.get()
	return roots
}

func (b *bundles) set(roots map[string][]*x509.Certificate, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if roots != nil {
		b.roots = roots
	}
	b.err = err
	close(b.changed)
	b.changed = make(chan struct{})
}

func (s *Source) followBundles(ctx context.Context) {
	_ = s.retry(ctx, func() (progress bool, err error) {
		return s.streamBundles(ctx)
	}, func(err error) { s.bundles.set(nil, err) })
}

func (s *Source) streamBundles(ctx context.Context) (progress bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(s.config.Timeout, func() { cancel(errSilent) })
	defer silence.Stop()
	stream, err := s.agent.SubscribeToX509Bundles(ctx, &delegated.SubscribeToX509BundlesRequest{})
	for err == nil {
		var answer *delegated.SubscribeToX509BundlesResponse
		if answer, err = stream.Recv(); err != nil {
			break
		}
		silence.Stop()
		roots, invalid := readBundles(answer.GetCaCertificates(), s.bundles.last())
		s.bundles.set(roots, invalid)
		progress = progress || invalid == nil
	}
	if errors.Is(context.Cause(ctx), errSilent) {
		err = errSilent
	}
	return progress, fmt.Errorf("stream of bundles: %w", err)
}

// readBundles takes the good bundles even where others are not, in the place
// of which those from before go on.
func readBundles(answer map[string][]byte, before map[string][]*x509.Certificate) (map[string][]*x509.Certificate, error) {
	all := map[string][]*x509.Certificate{}
	var problems []error
	for id, der := range answer {
		domain, err := trustDomain(id)
		var roots []*x509.Certificate
		if err == nil {
			roots, err = x509.ParseCertificates(der)
		}
		if err == nil && len(roots) == 0 {
			err = errors.New("it is empty")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("bundle of %.300q: %w", id, err))
			roots = before[domain]
		}
		if len(roots) > 0 {
			all[domain] = roots
		}
	}
	if len(all) == 0 {
		problems = append(problems, errors.New("no bundle came that has a root"))
		all = nil // what was there before goes on
	}
	return all, errors.Join(problems...)
}
