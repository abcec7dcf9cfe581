package client

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// On demand, addresses are asked for by name: those that somebody holds, and
// for a while those that somebody held. A name counts as heard once the control
// plane has said of this very name what it stands for, or that it is nothing;
// what merely is not there says neither. Whatever no name stands for any more is
// dropped, except for the node's own workloads, which come unasked.

const (
	// maxNames bounds the names, which is less than tacitd takes.
	maxNames = 20_000
	// A name that nobody holds is let go after a while, one that stands for
	// nothing sooner: whoever looks for something makes many of them.
	keepIdle    = 10 * time.Minute
	keepNothing = time.Minute
	lookEvery   = 5 * time.Second
	// What is wanted at once is asked for at once: each answer costs a look at
	// all names.
	gatherFor = 5 * time.Millisecond
	// Istio's control plane says what a name stands for when it is asked, and
	// not when there is something new behind it: so it is asked again.
	askAgain        = 30 * time.Second
	askAgainNothing = 5 * time.Second
)

// name is one that is asked for.
type name struct {
	holders int
	idle    time.Time // since when there are none
	asked   time.Time // on the present connection; zero: not yet
	batch   uint64    // the one of which the answer is awaited; 0: none
	heard   bool
	means   string // what was heard, as of [model.Snapshot.Stands]
}

// answered reports whether there was an answer on the present connection, so
// that what comes is news.
func (n *name) answered() bool { return !n.asked.IsZero() && n.batch == 0 }

// nothing reports whether that is what was heard.
func (n *name) nothing() bool { return n.heard && n.means == "" }

// Hold asks for a name, as of [model.AddressName] or "NAMESPACE/HOSTNAME", and
// keeps it until release is called, once: the sink is told of what it stands for
// and of what becomes of that. It is false where there are too many names
// already; some may be let go then, which the sink is told of.
func (c *Client) Hold(key string) (release func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.names[key]
	if n == nil {
		if len(c.names) >= maxNames {
			c.wakeAsking()
			return nil, false
		}
		n = &name{}
		c.names[key] = n
		c.unasked[key] = struct{}{}
		c.wakeAsking()
	}
	n.holders++
	return func() { c.release(key, n) }, true
}

func (c *Client) release(key string, n *name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.holders--; n.holders > 0 {
		return
	}
	n.idle = time.Now()
	if n.asked.IsZero() && !n.heard {
		delete(c.names, key) // nobody was told of it
		delete(c.unasked, key)
	}
}

func (c *Client) wakeAsking() {
	select {
	case c.asking <- struct{}{}:
	default:
	}
}

// resume makes the first request of a connection one for the names whose
// meaning is known, which may have changed meanwhile. The others are asked for
// by a second one: to that each gets an answer, be it held already or not.
func (c *Client) resume(request *discovery.DeltaDiscoveryRequest) {
	clear(c.unasked)
	c.givenUp, c.marks = nil, nil
	c.batches++
	// Without a name it would be a request for everything.
	request.ResourceNamesSubscribe, request.ResourceNamesUnsubscribe = []string{"*"}, []string{"*"}
	now := time.Now()
	for key, n := range c.names {
		switch {
		case n.heard:
			n.asked, n.batch = now, c.batches
			request.ResourceNamesSubscribe = append(request.ResourceNamesSubscribe, key)
		case n.holders == 0:
			delete(c.names, key)
		default:
			n.asked, n.batch = time.Time{}, 0
			c.unasked[key] = struct{}{}
		}
	}
	slices.Sort(request.ResourceNamesSubscribe[1:])
	if len(request.ResourceNamesSubscribe) > 1 {
		request.ResourceNamesSubscribe = append(request.ResourceNamesSubscribe, markOf(c.batches))
	}
	c.wakeAsking()
}

// talk sends answers, and what there is to ask for, until the connection ends.
func (c *Client) talk(ctx context.Context, answers <-chan *discovery.DeltaDiscoveryRequest, send func(*discovery.DeltaDiscoveryRequest) error) {
	var look, gathered <-chan time.Time
	if c.config.OnDemand {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		look = ticker.C
	}
	for {
		select {
		case answer := <-answers:
			if send(answer) != nil {
				return // the receiving side learns why
			}
			continue
		case <-c.asking:
			if gathered == nil {
				gathered = time.After(gatherFor)
			}
			continue
		case <-gathered:
			gathered = nil
			if c.crowded() {
				c.letGo(time.Now())
			}
		case now := <-look:
			c.letGo(now)
		case <-ctx.Done():
			return
		}
		for len(answers) > 0 { // nobody else takes any
			if send(<-answers) != nil {
				return
			}
		}
		for _, request := range c.requests(time.Now()) {
			if send(request) != nil {
				return
			}
		}
	}
}

func (c *Client) crowded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.names) >= maxNames
}

// requests give up names, and then ask for others: a name may be in both.
func (c *Client) requests(now time.Time) (out []*discovery.DeltaDiscoveryRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if givenUp := append(c.marks, c.givenUp...); len(givenUp) > 0 {
		out = append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesUnsubscribe: givenUp})
	}
	c.marks, c.givenUp = nil, nil
	if len(c.unasked) == 0 {
		return out
	}
	c.batches++
	wanted := slices.Sorted(maps.Keys(c.unasked))
	for _, key := range wanted {
		n := c.names[key]
		n.asked, n.batch = now, c.batches
	}
	clear(c.unasked)
	return append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesSubscribe: append(wanted, markOf(c.batches))})
}

// again has a name be asked for once more.
func (c *Client) again(key string, n *name) {
	if !n.asked.IsZero() {
		c.givenUp = append(c.givenUp, key)
		c.unasked[key] = struct{}{}
		n.asked, n.batch = time.Time{}, 0
	}
	c.wakeAsking()
}

// letGo gives up names that nobody has held for a while, and what they stood
// for; and asks again where that is needed.
func (c *Client) letGo(now time.Time) {
	c.applying.Lock()
	defer c.applying.Unlock()
	c.mu.Lock()
	var u model.Update
	for _, key := range c.forgettable(now) {
		n := c.names[key]
		delete(c.names, key)
		delete(c.unasked, key)
		if n.heard {
			u.Unheard = append(u.Unheard, key)
		}
		if !n.asked.IsZero() {
			c.givenUp = append(c.givenUp, key)
		}
	}
	for key, n := range c.names {
		after := askAgain
		if n.nothing() {
			after = askAgainNothing
		}
		if !n.asked.IsZero() && now.Sub(n.asked) >= after && !(n.heard && c.tellsNews) {
			c.again(key, n)
		}
	}
	if len(u.Unheard) > 0 {
		c.sweep(&u)
	}
	c.mu.Unlock()
	if !isEmpty(u) {
		c.config.Sink.Apply(u)
	}
}

// forgettable are the names that are to be let go: those that have been idle
// for long and, where there are too many, others of which nobody has need now,
// the ones that stand for nothing first.
func (c *Client) forgettable(now time.Time) (out []string) {
	var idle []string
	for key, n := range c.names {
		since := now.Sub(n.idle)
		switch {
		case n.holders > 0:
		case since >= keepIdle || n.means == "" && since >= keepNothing:
			out = append(out, key)
		default:
			idle = append(idle, key)
		}
	}
	most := maxNames
	if len(c.names) >= maxNames {
		most = maxNames * 3 / 4
	}
	excess := min(len(c.names)-len(out)-most, len(idle))
	if excess <= 0 {
		return out
	}
	slices.SortFunc(idle, func(a, b string) int {
		m, n := c.names[a], c.names[b]
		if m.nothing() != n.nothing() {
			if m.nothing() {
				return -1
			}
			return 1
		}
		return cmp.Or(m.idle.Compare(n.idle), cmp.Compare(a, b))
	})
	return append(out, idle[:excess]...)
}

// sweep drops the resources that no name stands for. They are given up as names,
// too: Istio's control plane takes what it has sent for asked for.
func (c *Client) sweep(u *model.Update) {
	s := c.config.Known()
	wanted := map[string]bool{}
	for key := range c.names {
		s.Named(key, func(resource string) { wanted[resource] = true })
	}
	k := c.kind(wire.AddressType)
	for key := range k.resources {
		if w := s.Workload(key); wanted[key] || w != nil && w.Node == c.config.Node.Name {
			continue
		}
		delete(k.resources, key)
		u.RemovedAddresses = append(u.RemovedAddresses, key)
	}
	c.givenUp = append(c.givenUp, u.RemovedAddresses...)
	c.markDirty()
}

// heardNames are those that the next process need not ask for.
func (c *Client) heardNames() (out []string) {
	for key, n := range c.names {
		if n.heard {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// restoreNames takes over the names of an earlier process, which nobody holds
// yet. What they stand for has been restored, so the rest stands for nothing.
func (c *Client) restoreNames(keys []string, u *model.Update) {
	u.OnDemand = true
	next := c.config.Known().Apply(*u)
	for _, key := range keys[:min(len(keys), maxNames)] {
		c.names[key] = &name{idle: time.Now(), heard: true, means: next.Stands(key)}
		u.Heard = append(u.Heard, key)
	}
}
