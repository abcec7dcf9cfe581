// Package resolve finds the addresses of workloads that the control plane knows
// by a DNS name alone: endpoints of a ServiceEntry, or a gateway behind a cloud's
// load balancer.
//
// It stands between the control plane's client and the state, and applies a
// workload again when its name leads elsewhere. What does not belong here: pods'
// own DNS queries (proxy/dns), and which of the addresses is dialed (proxy/route).
package resolve

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Sink takes updates, one at a time and in order.
type Sink interface {
	Apply(model.Update)
}

// Config says who is told, and how names are looked up.
type Config struct {
	To Sink
	// Lookup asks for a name that ends with a dot; nil: as this machine does.
	Lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	Log    *zap.Logger // nil: none
}

// Resolver is a Sink before another one.
type Resolver struct {
	Config
	wake chan struct{} // holds one token while a name may be due

	mu     sync.Mutex        // held while To is told, so that updates stay in order
	names  map[string]*name  // by hostname
	of     map[string]string // hostname by workload's UID
	asking int               // lookups under way
}

// name is one that some workloads have in the place of addresses.
type name struct {
	workloads map[string]*model.Workload // by UID, as the control plane sent them
	found     []netip.Addr               // sorted
	failed    bool                       // the last lookup
	due       time.Time
	asking    bool
}

const (
	// refresh is how long what a name leads to is used before it is asked for
	// again, retry how long after a failure; until then the last answer holds.
	refresh = 30 * time.Second
	retry   = 5 * time.Second
	timeout = 5 * time.Second

	atOnce       = 8    // lookups
	maxNames     = 1000 // further ones lead nowhere
	maxAddresses = 16   // of one name
)

// New makes a resolver; names are looked up while Run is on.
func New(cfg Config) *Resolver {
	if cfg.Lookup == nil {
		cfg.Lookup = net.DefaultResolver.LookupNetIP
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Resolver{
		Config: cfg, wake: make(chan struct{}, 1), names: map[string]*name{}, of: map[string]string{},
	}
}

// Apply passes an update on, workloads with what is known of their names.
func (r *Resolver) Apply(u model.Update) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range u.RemovedAddresses {
		r.forget(key)
	}
	copied := false
	for i, w := range u.Workloads {
		r.forget(w.UID)
		n := r.remember(w)
		if n == nil {
			continue
		}
		if !copied {
			u.Workloads, copied = slices.Clone(u.Workloads), true
		}
		u.Workloads[i] = leading(w, n.found)
	}
	r.To.Apply(u)
}

func leading(w *model.Workload, to []netip.Addr) *model.Workload {
	resolved := *w
	resolved.Resolved = to
	return &resolved
}

// remember notes a workload that has no more than a name, and returns that; nil
// of any other. The caller holds mu.
func (r *Resolver) remember(w *model.Workload) *name {
	host := strings.TrimSuffix(w.Hostname, ".")
	if len(w.Addresses) > 0 || host == "" || strings.ContainsAny(host, "*/ ") {
		return nil
	}
	n := r.names[host]
	if n == nil {
		if len(r.names) >= maxNames {
			r.Log.Warn("too many workloads have a DNS name and no address; this one cannot be reached", zap.String("workload", w.UID), zap.Int("most", maxNames))
			return nil
		}
		n = &name{workloads: map[string]*model.Workload{}}
		r.names[host] = n
		r.wakeUp()
	}
	n.workloads[w.UID], r.of[w.UID] = w, host
	return n
}

// forget is for a workload that is gone, or comes anew. The caller holds mu.
func (r *Resolver) forget(uid string) {
	host, ok := r.of[uid]
	if !ok {
		return
	}
	delete(r.of, uid)
	delete(r.names[host].workloads, uid) // the name is kept until it is due: it may come again at once
}

func (r *Resolver) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run looks names up, and again from time to time, until the context ends.
func (r *Resolver) Run(ctx context.Context) error {
	var asking sync.WaitGroup
	defer asking.Wait()
	for {
		due, next := r.due(time.Now())
		for _, host := range due {
			asking.Go(func() { r.ask(ctx, host) })
		}
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-r.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// due lists the names to ask for now, as many as there may be, and says how long
// none will be due. Names that nobody has any more are dropped.
func (r *Resolver) due(now time.Time) (hosts []string, next time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next = refresh
	for host, n := range r.names {
		switch {
		case n.asking:
		case n.due.After(now):
			next = min(next, n.due.Sub(now))
		case len(n.workloads) == 0:
			delete(r.names, host)
		case r.asking < atOnce: // others wait for the end of one
			n.asking = true
			r.asking++
			hosts = append(hosts, host)
		}
	}
	return hosts, next
}

func (r *Resolver) ask(ctx context.Context, host string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// The final dot keeps this process's search domains out of it.
	found, err := r.Lookup(ctx, "ip", host+".")
	r.settle(host, usable(found), err)
}

// usable are addresses that may be another's, in one order.
func usable(found []netip.Addr) (all []netip.Addr) {
	for _, a := range found {
		if a = a.Unmap(); a.IsGlobalUnicast() && a.Zone() == "" {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	all = slices.Compact(all)
	return all[:min(len(all), maxAddresses)]
}

// settle takes the outcome of a lookup. Without an answer the last one holds; a
// name that is said not to exist leads nowhere.
func (r *Resolver) settle(host string, found []netip.Addr, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.wakeUp()
	n := r.names[host]
	r.asking--
	n.asking, n.due = false, time.Now().Add(refresh)
	if err != nil {
		if !n.failed {
			r.Log.Warn("a workload's DNS name leads nowhere; it is asked for again", zap.String("name", host), zap.Error(err), zap.Int("addresses from before", len(n.found)))
		}
		n.due = time.Now().Add(retry)
		var answer *net.DNSError
		if !errors.As(err, &answer) || !answer.IsNotFound {
			found = n.found
		}
	}
	n.failed = err != nil
	if slices.Equal(found, n.found) {
		return
	}
	n.found = found
	var u model.Update
	for _, w := range n.workloads {
		u.Workloads = append(u.Workloads, leading(w, found))
	}
	slices.SortFunc(u.Workloads, func(a, b *model.Workload) int { return cmp.Compare(a.UID, b.UID) })
	if len(u.Workloads) > 0 {
		r.To.Apply(u)
	}
}
