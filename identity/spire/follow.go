package spire

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/tacit-mesh/tacit/identity"
)

// follower is one subscription.
type follower struct {
	source  *Source
	subject identity.Subject
	update  func(*identity.Material)
	failed  func(error)

	answer  *delegated.SubscribeToX509SVIDsResponse // nil before the first of a stream
	current *identity.Material                      // the last that was good
}

// settle is how long an answer without certificates is not believed: SPIRE may
// send one just before the real one.
const settle = time.Second

// follow reads one stream to its end. It has made progress if something good
// and new came of it.
func (f *follower) follow(ctx context.Context) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.answer = nil
	answers, ended := f.receive(ctx)
	silence := time.NewTimer(f.source.config.Timeout)
	defer silence.Stop()
	roots, changed, missing := f.source.bundles.get()
	for news := false; ; {
		if news && f.answer != nil {
			progress = f.apply(roots, missing) || progress
		}
		news = false
		select {
		case f.answer = <-answers:
			silence.Stop()
			if len(f.answer.GetX509Svids()) == 0 {
				f.answer = f.reconsider(ctx, answers)
			}
			news = true
		case <-changed:
			roots, changed, missing = f.source.bundles.get()
			news = true
		case err := <-ended:
			return progress, err
		case <-silence.C:
			return progress, errSilent
		case <-f.overdue():
			if f.isOverdue() {
				return progress, fmt.Errorf("it has not renewed it, and %s are left", f.left())
			}
		case <-ctx.Done():
			return progress, ctx.Err()
		}
	}
}

// receive passes on what comes until the context ends.
func (f *follower) receive(ctx context.Context) (<-chan *delegated.SubscribeToX509SVIDsResponse, <-chan error) {
	answers, ended := make(chan *delegated.SubscribeToX509SVIDsResponse), make(chan error, 1)
	f.source.running.Go(func() {
		request := &delegated.SubscribeToX509SVIDsRequest{Selectors: parseSelectors(f.subject.Selectors)}
		stream, err := f.source.agent.SubscribeToX509SVIDs(ctx, request)
		for err == nil {
			var answer *delegated.SubscribeToX509SVIDsResponse
			if answer, err = stream.Recv(); err != nil {
				break
			}
			select {
			case answers <- answer:
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		ended <- err
	})
	return answers, ended
}

// reconsider waits for the answer that may follow an empty one.
func (f *follower) reconsider(ctx context.Context, answers <-chan *delegated.SubscribeToX509SVIDsResponse) *delegated.SubscribeToX509SVIDsResponse {
	select {
	case next := <-answers:
		return next
	case <-time.After(settle):
	case <-ctx.Done():
	}
	return f.answer
}

// apply makes material of the last answer and the bundles. What is not good
// changes nothing: the certificate from before serves while it is valid.
func (f *follower) apply(roots map[string][]*x509.Certificate, missing error) (fresh bool) {
	m, err := f.choose(roots)
	switch {
	case err != nil:
	case m == nil && missing != nil:
		err = missing
	case m == nil:
		err = fmt.Errorf("no bundle of its own trust domain %s", f.subject.Identity.TrustDomain)
	default:
		err = m.Check(now())
	}
	if err != nil {
		f.failed(f.keep(err))
		return false
	}
	fresh = f.current == nil || !f.current.Leaf.Equal(m.Leaf)
	f.current = m
	f.update(m)
	if missing != nil { // of other trust domains, or newer ones
		f.failed(f.keep(missing))
	}
	return fresh
}

// choose finds the subject's certificate in the answer; none yet, without an
// error, as long as there are no roots for it.
func (f *follower) choose(roots map[string][]*x509.Certificate) (*identity.Material, error) {
	var came []string
	for _, svid := range f.answer.GetX509Svids() {
		id := idOf(svid.GetX509Svid().GetId())
		if id != f.subject.Identity.String() {
			came = append(came, fmt.Sprintf("%.300q", id))
			continue
		}
		own := roots[f.subject.Identity.TrustDomain]
		if len(own) == 0 {
			return nil, nil
		}
		m, err := material(svid, own)
		if err != nil {
			return nil, err
		}
		m.Federate(f.federated(roots))
		return m, nil
	}
	return nil, f.nothing(came)
}

// mostSelectors bounds how many bytes of them an error quotes.
const mostSelectors = 2 << 10

func (f *follower) nothing(came []string) error {
	const most = 10
	selectors := strings.ReplaceAll(f.subject.Selectors, "\n", " k8s:")
	if len(selectors) > mostSelectors {
		selectors = strings.ToValidUTF8(selectors[:mostSelectors], "") + " …"
	}
	switch {
	case len(came) == 0:
		return fmt.Errorf("no entry is registered that fits the pod's selectors k8s:%s", selectors)
	case len(came) > most:
		came = append(came[:most], fmt.Sprintf("%d more", len(came)-most))
	}
	return fmt.Errorf("the entries that fit the pod are for %s, not for the pod's own identity; its selectors are k8s:%s", strings.Join(came, ", "), selectors)
}

// federated are the bundles of the trust domains that the entry federates
// with.
func (f *follower) federated(roots map[string][]*x509.Certificate) map[string][]*x509.Certificate {
	chosen := map[string][]*x509.Certificate{}
	for _, id := range f.answer.GetFederatesWith() {
		if domain, err := trustDomain(id); err == nil {
			chosen[domain] = roots[domain]
		}
	}
	return chosen
}

func (f *follower) keep(err error) error {
	err = fmt.Errorf("certificate for %s from SPIRE agent %s: %w", f.subject.Identity, f.source.config.Socket, err)
	if f.current != nil && f.current.ValidAt(now()) {
		return fmt.Errorf("%w; the one there is serves for another %s", err, f.left())
	}
	return err
}

func material(svid *delegated.X509SVIDWithKey, roots []*x509.Certificate) (*identity.Material, error) {
	var chain []*x509.Certificate
	for _, der := range svid.GetX509Svid().GetCertChain() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("chain: %w", err)
		}
		chain = append(chain, c)
	}
	key, err := x509.ParsePKCS8PrivateKey(svid.GetX509SvidKey())
	if err != nil {
		return nil, errors.New("its private key cannot be read") // the parser might quote it
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("its private key, a %T, cannot sign", key)
	}
	return identity.NewMaterial(chain, signer, slices.Clone(roots))
}

func idOf(id *types.SPIFFEID) string {
	return "spiffe://" + id.GetTrustDomain() + id.GetPath()
}

// trustDomain reads a name with or without its scheme.
func trustDomain(s string) (string, error) {
	d, err := spiffeid.TrustDomainFromString(s)
	return d.Name(), err
}

func (f *follower) isOverdue() bool { return f.current != nil && !now().Before(f.current.RenewalDue()) }

// overdue fires when there is reason to look whether the renewal is, once the
// stream has said something: before, that is what is waited for.
func (f *follower) overdue() <-chan time.Time {
	if f.current == nil || f.answer == nil {
		return nil
	}
	return time.After(max(0, min(wallStep, f.current.RenewalDue().Sub(now()))))
}

func (f *follower) left() time.Duration {
	return max(0, f.current.NotAfter().Sub(now())).Truncate(time.Second)
}
