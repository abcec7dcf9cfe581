// Package spire gets workloads' certificates from SPIRE's agent on this node,
// over its Delegated Identity API: the proxy asks on behalf of the pods, by
// their selectors, and is pushed what changes.
//
// Keys are made by SPIRE's agent and come over its admin socket. What does not
// belong here: a single identity of one's own (the Workload API), and who
// holds which identity (identity.Store).
package spire

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/identity"
)

const (
	firstBackoff = 250 * time.Millisecond
	maxBackoff   = 10 * time.Second
	// wallStep bounds how long a machine that was suspended, or whose clock
	// was set, goes on by the old time: timers do not run in suspend.
	wallStep       = 15 * time.Second
	defaultTimeout = 10 * time.Second
)

// Config says where SPIRE's agent listens.
type Config struct {
	// Socket is the agent's admin_socket_path. This process must be one of
	// the agent's authorized_delegates.
	Socket string
	// Timeout bounds the waits for a connection and for the first answer to
	// a question; 0 is 10 s.
	Timeout time.Duration
}

// Source is an identity.Source. All subscriptions share one connection, and
// one stream of bundles.
type Source struct {
	config  Config
	conn    *grpc.ClientConn
	agent   delegated.DelegatedIdentityClient
	bundles *bundles

	stop    context.CancelFunc
	running sync.WaitGroup
}

// New makes a source, which connects by itself, again and again if need be.
func New(config Config) (*Source, error) {
	if config.Timeout == 0 {
		config.Timeout = defaultTimeout
	}
	reconnect := backoff.Config{BaseDelay: firstBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff}
	conn, err := grpc.NewClient("passthrough:///spire-agent",
		// The socket's permissions say who may connect, the agent sees by
		// the socket who does.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", config.Socket)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: config.Timeout}),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, err
	}
	s := &Source{config: config, conn: conn, agent: delegated.NewDelegatedIdentityClient(conn), bundles: newBundles()}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.running.Go(func() { s.followBundles(ctx) })
	return s, nil
}

// Close ends the connection; subscriptions fail from then on.
func (s *Source) Close() error {
	s.stop()
	err := s.conn.Close()
	s.running.Wait()
	return err
}

// Subscribe implements identity.Source. The subject's selectors are those of
// [Selectors]. SPIRE renews at half of a certificate's life by itself; one that
// it does not renew is asked for anew.
func (s *Source) Subscribe(ctx context.Context, subject identity.Subject, update func(*identity.Material), failed func(error)) error {
	f := &follower{source: s, subject: subject, update: update, failed: failed}
	return s.retry(ctx, func() (progress bool, err error) {
		progress, err = f.follow(ctx)
		return progress, fmt.Errorf("certificate for %s from SPIRE agent %s%w", subject.Identity, s.config.Socket, advice{err})
	}, failed)
}

// retry calls attempt until the context ends, with backoff, from the beginning
// again where an attempt has made progress.
func (s *Source) retry(ctx context.Context, attempt func() (progress bool, err error), failed func(error)) error {
	wait := firstBackoff
	for {
		progress, err := attempt()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		failed(err)
		if progress {
			wait = firstBackoff
		}
		select {
		case <-time.After(wait - time.Duration(rand.Float64()*float64(wait)/5)):
		case <-ctx.Done():
			return ctx.Err()
		}
		wait = min(2*wait, maxBackoff)
	}
}

// advice adds to an error of the API what the operator can check.
type advice struct{ err error }

func (a advice) Error() string {
	hint := ""
	switch status.Code(a.err) {
	case codes.PermissionDenied:
		hint = " (is an entry there for the proxy's own process, and its id among the agent's authorized_delegates?)"
	case codes.Unavailable:
		hint = " (is it running, and is this its admin_socket_path?)"
	case codes.Unimplemented:
		hint = " (is this its socket_path instead of its admin_socket_path?)"
	}
	return hint + ": " + a.err.Error()
}

// Unwrap gives the cause.
func (a advice) Unwrap() error { return a.err }

var errSilent = errors.New("it does not answer")

// now is wall time: without the monotonic reading, which stands still in
// suspend.
func now() time.Time { return time.Now().Round(0) }
