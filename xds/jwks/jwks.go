// Package jwks fetches the key sets of issuers of tokens, and keeps them fresh.
//
// Where to fetch comes from objects that users write, and the fetch runs with
// the control plane's place in the network. So it speaks https alone, follows
// no redirects, connects to no address that only the control plane should
// reach, reads a bounded answer in a bounded time, and keeps one issuer's
// troubles from the others. What was fetched stays when a later fetch fails.
package jwks

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
)

// Source is where a key set is: at URI or, if that is empty, where the issuer's
// own configuration says (OpenID Connect Discovery).
type Source struct {
	Name, Issuer, URI string
	Timeout           time.Duration // of a fetch, MaxTimeout at most; 0 means DefaultTimeout
}

// Config is what a Fetcher depends on.
type Config struct {
	Log *zap.Logger
	// Parse brings an answer to the form to be kept, or refuses it.
	Parse func(document []byte) (string, error)
	// Changed gets all key sets, by the names of their sources, after each
	// fetch that brought something new.
	Changed func(map[string]string)
	// Refresh is how often what was fetched is fetched again, and the longest
	// that failed fetches wait; 0 means DefaultRefresh.
	Refresh time.Duration
	// Forbidden are addresses never to connect to, besides loopback,
	// link-local, multicast and unspecified ones: those of the API server.
	Forbidden []netip.Prefix
	// Transport replaces the one that is made otherwise; for tests.
	Transport http.RoundTripper
}

const (
	firstBackoff = 2 * time.Second
	maxAnswer    = 1 << 20
	atOnce       = 8 // fetches under way
	maxSources   = 1024
)

// DefaultRefresh is between fetches of one key set.
const DefaultRefresh = 5 * time.Minute

// DefaultTimeout and MaxTimeout are of one fetch, of all that it takes.
const (
	DefaultTimeout = 5 * time.Second
	MaxTimeout     = 15 * time.Second
)

// Fetcher fetches what it is told to.
type Fetcher struct {
	config Config
	client *http.Client
	places *semaphore.Weighted
	// refresh and backoff are Config.Refresh and firstBackoff; tests are quicker.
	refresh, backoff time.Duration

	tell    sync.Mutex // held while Changed is called, so that the newest comes last
	mu      sync.Mutex
	wanted  map[string]*fetch
	sets    map[string]string
	changed chan struct{} // holds one value after Want
}

// fetch is one source that is wanted.
type fetch struct {
	source Source
	stop   context.CancelFunc // nil until it runs
}

// New makes a Fetcher that wants nothing yet.
func New(c Config) *Fetcher {
	f := &Fetcher{
		config: c, places: semaphore.NewWeighted(atOnce), refresh: cmp.Or(c.Refresh, DefaultRefresh), backoff: firstBackoff,
		wanted: map[string]*fetch{}, sets: map[string]string{}, changed: make(chan struct{}, 1),
	}
	f.client = newClient(c)
	return f
}

// Want says which key sets are needed from now on. It returns at once.
func (f *Fetcher) Want(sources []Source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := make(map[string]*fetch, len(sources))
	for i, s := range sources {
		if i == maxSources {
			f.config.Log.Error("key sets of more issuers are wanted than are fetched", zap.Int("wanted", len(sources)), zap.Int("fetched", maxSources))
			break
		}
		if old := f.wanted[s.Name]; old != nil && old.source == s {
			now[s.Name] = old
			continue
		}
		now[s.Name] = &fetch{source: s}
	}
	for name, old := range f.wanted {
		if now[name] == old {
			continue
		}
		if old.stop != nil {
			old.stop()
		}
		if now[name] == nil {
			delete(f.sets, name)
		}
	}
	f.wanted = now
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// Run fetches until the context ends, and returns its error.
func (f *Fetcher) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		select {
		case <-f.changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		f.mu.Lock()
		for _, w := range f.wanted {
			if w.stop != nil {
				continue
			}
			var own context.Context
			own, w.stop = context.WithCancel(ctx)
			running.Go(func() { f.follow(own, w) })
		}
		f.mu.Unlock()
	}
}

// follow keeps one key set fresh until it is wanted no longer.
func (f *Fetcher) follow(ctx context.Context, w *fetch) {
	backoff := f.backoff
	for {
		set, err := f.once(ctx, w.source)
		wait := f.refresh
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			f.config.Log.Warn("key set not fetched", zap.String("source", w.source.Name), zap.Error(err), zap.Duration("again_in", backoff))
			wait, backoff = backoff, min(2*backoff, max(f.backoff, f.refresh))
		} else {
			backoff = f.backoff
			f.keep(w, set)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

func (f *Fetcher) once(ctx context.Context, s Source) (string, error) {
	if err := f.places.Acquire(ctx, 1); err != nil {
		return "", err
	}
	defer f.places.Release(1)
	ctx, cancel := context.WithTimeout(ctx, min(cmp.Or(s.Timeout, DefaultTimeout), MaxTimeout))
	defer cancel()
	document, err := f.get(ctx, s)
	if err != nil {
		return "", err
	}
	return f.config.Parse(document)
}

func (f *Fetcher) keep(w *fetch, set string) {
	f.tell.Lock()
	defer f.tell.Unlock()
	f.mu.Lock()
	name := w.source.Name
	if f.wanted[name] != w || f.sets[name] == set {
		f.mu.Unlock()
		return
	}
	f.sets[name] = set
	sets := maps.Clone(f.sets)
	f.mu.Unlock()
	f.config.Log.Info("key set fetched", zap.String("source", name))
	f.config.Changed(sets)
}
