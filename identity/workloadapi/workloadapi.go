// Package workloadapi gets certificates from a SPIFFE Workload API, such as
// that of SPIRE's agent: those of this very process, which the API knows by the
// socket it comes from.
//
// What does not belong here: certificates on behalf of others (spire, caclient).
package workloadapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/identity"
)

const (
	defaultTimeout = 10 * time.Second
	// wallStep bounds how long a machine that was suspended, or whose clock
	// was set, goes on by the old time: timers do not run in suspend.
	wallStep   = 15 * time.Second
	maxBackoff = 10 * time.Second
)

// Config says where the Workload API is.
type Config struct {
	// Socket is the path of its Unix socket.
	Socket string
	// Timeout bounds the wait for its first answer; 0 is 10 s.
	Timeout time.Duration
}

// Source is an identity.Source for the identities that the API gives to this
// process.
type Source struct {
	config Config
	client *workloadapi.Client
}

// New makes a source, which connects by itself, again and again if need be.
func New(config Config) (*Source, error) {
	if config.Timeout == 0 {
		config.Timeout = defaultTimeout
	}
	reconnect := backoff.DefaultConfig
	reconnect.MaxDelay = maxBackoff
	client, err := workloadapi.New(context.Background(), workloadapi.WithAddr("unix://"+config.Socket),
		workloadapi.WithDialOptions(grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: config.Timeout})))
	if err != nil {
		return nil, fmt.Errorf("socket %s of a Workload API: %w", config.Socket, err)
	}
	return &Source{config, client}, nil
}

// Close ends the connection; subscriptions fail from then on.
func (s *Source) Close() error { return s.client.Close() }

// Subscribe implements identity.Source. Of the identities that the API gives,
// the subject's is taken. The API renews by itself; a renewal that is late is
// reported.
func (s *Source) Subscribe(ctx context.Context, subject identity.Subject, update func(*identity.Material), failed func(error)) error {
	w := &watcher{source: s, subject: subject, update: update, report: failed, ctx: ctx}
	var looking sync.WaitGroup
	defer looking.Wait()
	looking.Go(w.look)
	for ctx.Err() == nil {
		// It ends on answers that go-spiffe takes to be for good.
		_ = s.client.WatchX509Context(ctx, w)
		select {
		case <-time.After(maxBackoff):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// watcher is one subscription.
type watcher struct {
	source  *Source
	subject identity.Subject
	update  func(*identity.Material)
	report  func(error)
	ctx     context.Context

	mu      sync.Mutex
	current *identity.Material // the last that was good
	spoken  bool               // the API has answered, well or not, since look was here
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (w *watcher) OnX509ContextUpdate(answer *workloadapi.X509Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spoken = true
	m, err := w.choose(answer)
	if err == nil {
		err = m.Check(now())
	}
	if err != nil {
		w.failed(err)
		return
	}
	w.current = m
	w.update(m)
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (w *watcher) OnX509ContextWatchError(err error) {
	if w.ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spoken = true
	w.failed(err)
}

// look reports an API that says nothing, and renewals that are late.
func (w *watcher) look() {
	for {
		wait := w.source.config.Timeout
		w.mu.Lock()
		if w.current != nil {
			wait = max(time.Second, min(wallStep, w.current.RenewalDue().Sub(now())))
		}
		w.mu.Unlock()
		select {
		case <-time.After(wait):
		case <-w.ctx.Done():
			return
		}
		w.mu.Lock()
		switch {
		case w.current == nil && !w.spoken:
			w.failed(errors.New("it does not answer"))
		case w.current != nil && !now().Before(w.current.RenewalDue()):
			w.failed(fmt.Errorf("it has not renewed it, and %s are left", max(0, w.current.NotAfter().Sub(now())).Truncate(time.Second)))
		}
		w.spoken = false
		w.mu.Unlock()
	}
}

// choose takes the subject's certificate out of an answer.
func (w *watcher) choose(answer *workloadapi.X509Context) (*identity.Material, error) {
	var given []string
	for _, svid := range answer.SVIDs {
		if svid.ID.String() != w.subject.Identity.String() {
			given = append(given, svid.ID.String())
			continue
		}
		own, ok := answer.Bundles.Get(svid.ID.TrustDomain())
		if !ok {
			return nil, fmt.Errorf("no bundle of its own trust domain %s came", svid.ID.TrustDomain())
		}
		m, err := identity.NewMaterial(svid.Certificates, svid.PrivateKey, own.X509Authorities())
		if err != nil {
			return nil, err
		}
		others := map[string][]*x509.Certificate{}
		for _, bundle := range answer.Bundles.Bundles() {
			others[bundle.TrustDomain().Name()] = bundle.X509Authorities()
		}
		m.Federate(others)
		return m, nil
	}
	return nil, fmt.Errorf("it gives this process %.1000q, and not that one: is there an entry that fits?", given)
}

func (w *watcher) failed(err error) {
	hint := ""
	switch status.Code(err) {
	case codes.PermissionDenied:
		hint = " (is there an entry that fits this process?)"
	case codes.Unavailable:
		hint = " (is it running, and is this its socket?)"
	case codes.Unimplemented:
		hint = " (is this its admin_socket_path instead of its socket_path?)"
	}
	w.report(fmt.Errorf("certificate for %s from the Workload API at %s%s: %w", w.subject.Identity, w.source.config.Socket, hint, err))
}

// now is wall time: without the monotonic reading, which stands still in
// suspend.
func now() time.Time { return time.Now().Round(0) }
