// Package report tells tacitd what a proxy has seen: who talked to whom, in
// sums, and the last denials.
//
// Nothing is summed up unless a tacitd takes it: one that keeps no flows, or
// istiod, does not know the service, and is asked again only now and then. Each
// of several replicas is told everything, so that whichever a person asks knows
// it. What does not belong here: how flows are remembered (proxy/flows).
package report

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/api/sight"
)

const (
	maxReplicas  = 8
	lookUp       = 30 * time.Second // how often the addresses of a name are asked for
	firstRetry   = time.Second
	maxRetry     = time.Minute
	unwanted     = 10 * time.Minute // until a server that does not know the service is asked again
	answerLimit  = 30 * time.Second
	minInterval  = time.Second
	maxInterval  = 10 * time.Minute
	forgetAfter  = 3 * time.Minute // what was seen longer ago belongs to no minute that is still open
	maxPairs     = 1000            // in a summary; further ones are told in the next
	maxDenials   = 64
	maxUses      = 1000
	maxHeldCerts = 512
	maxRootSets  = 64
)

// Reporter tells. Its functions are called from many goroutines.
type Reporter struct {
	// Server says how to reach tacitd: every address that its name has is one
	// to tell.
	Server caclient.Config
	Flows  *flows.Log
	// Live are the connections that carry bytes now.
	Live func() iter.Seq[flows.Event]
	// Certificates are those of the node.
	Certificates func() []admin.Certificate
	// Roots are those by which the proxy knows tacitd, and then each set by
	// which its pods judge peers, some perhaps more than once.
	Roots func() [][]*x509.Certificate
	Log   *zap.Logger

	// resolve is the name service but in tests.
	resolve func(ctx context.Context, host string) ([]string, error)
}

// Run tells until the context ends, and returns its error.
func (r *Reporter) Run(ctx context.Context) error {
	host, port, err := net.SplitHostPort(r.Server.Address)
	if err != nil {
		return fmt.Errorf("address %q to report to: %w", r.Server.Address, err)
	}
	if r.Flows == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	var tellers sync.WaitGroup
	defer tellers.Wait()
	known := map[string]context.CancelFunc{}
	defer func() {
		for _, end := range known {
			end()
		}
	}()
	for {
		addresses, err := r.addresses(ctx, host)
		if err != nil {
			r.Log.Debug("nobody to report to", zap.Error(err)) // those that are known go on
		}
		for _, address := range addresses {
			if known[address] != nil || len(known) >= maxReplicas {
				continue
			}
			telling, end := context.WithCancel(ctx)
			known[address] = end
			server := r.Server
			server.Address = net.JoinHostPort(address, port)
			tellers.Go(func() { r.follow(telling, server) })
		}
		for address, end := range known {
			if err == nil && !slices.Contains(addresses, address) {
				end()
				delete(known, address)
			}
		}
		if !sleep(ctx, lookUp) {
			return ctx.Err()
		}
	}
}

func (r *Reporter) addresses(ctx context.Context, host string) ([]string, error) {
	if net.ParseIP(host) != nil {
		return []string{host}, nil
	}
	resolve := r.resolve
	if resolve == nil {
		resolve = net.DefaultResolver.LookupHost
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	return resolve(ctx, host)
}

// follow tells one tacitd until the context ends, over as many connections as it
// takes.
func (r *Reporter) follow(ctx context.Context, server caclient.Config) {
	t := newTeller(r, time.Now())
	retry := firstRetry
	for {
		err := r.session(ctx, server, t)
		if ctx.Err() != nil {
			return
		}
		wait := retry + rand.N(retry)
		switch {
		case status.Code(err) == codes.Unimplemented:
			wait = unwanted
		case time.Since(t.taken) < maxRetry: // it was of use
			retry = firstRetry
		default:
			retry = min(2*retry, maxRetry)
		}
		r.Log.Debug("not reporting", zap.String("server", server.Address), zap.Error(err), zap.Duration("retry_in", wait))
		if !sleep(ctx, wait) {
			return
		}
	}
}

// session tells over one connection until it ends.
func (r *Reporter) session(ctx context.Context, server caclient.Config, t *teller) error {
	conn, err := caclient.Dial(server)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := sight.NewSightClient(conn).Tell(ctx)
	if err != nil {
		return err
	}
	// exchange waits for the answer, but not for ever.
	exchange := func(s *sight.Summary) (interval time.Duration, tacitd uint64, err error) {
		stuck := time.AfterFunc(answerLimit, cancel)
		defer stuck.Stop()
		_ = stream.Send(s) // Recv alone knows why it failed
		taken, err := stream.Recv()
		if err != nil {
			return 0, 0, err
		}
		interval = time.Duration(min(max(taken.GetIntervalMillis(), 0), maxInterval.Milliseconds())) * time.Millisecond
		return max(interval, minInterval), taken.GetProcess(), nil
	}
	interval, tacitd, err := exchange(&sight.Summary{Process: t.process})
	if err != nil {
		return err
	}
	t.begin(tacitd, time.Now())
	for {
		if !sleep(ctx, interval) {
			return errors.Join(ctx.Err(), errors.New("stopped"))
		}
		for more := true; more; {
			var s *sight.Summary
			s, more = t.summary(time.Now())
			if interval, _, err = exchange(s); err != nil {
				return err
			}
			t.done(time.Now())
		}
	}
}

// sleep reports whether the time has passed before the context ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
