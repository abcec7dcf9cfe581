package client

import (
	"cmp"
	"context"
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
	heard   bool
	nothing bool // is what was heard
}

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
		c.unasked = append(c.unasked, key)
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
	c.unasked, c.givenUp = nil, nil
	// Without a name it would be a request for everything.
	request.ResourceNamesSubscribe, request.ResourceNamesUnsubscribe = []string{"*"}, []string{"*"}
	now := time.Now()
	for key, n := range c.names {
		switch {
		case n.heard:
			n.asked = now
			request.ResourceNamesSubscribe = append(request.ResourceNamesSubscribe, key)
		case n.holders == 0:
			delete(c.names, key)
		default:
			n.asked = time.Time{}
			c.unasked = append(c.unasked, key)
		}
	}
	slices.Sort(request.ResourceNamesSubscribe[1:])
	c.wakeAsking()
}

// ask sends what there is to ask for, until the connection ends.
func (c *Client) ask(ctx context.Context, send func(*discovery.DeltaDiscoveryRequest) error) {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-c.asking:
			if c.crowded() {
				c.letGo(time.Now())
			}
		case now := <-look.C:
			c.letGo(now)
		case <-ctx.Done():
			return
		}
		for _, request := range c.requests(time.Now()) {
			if send(request) != nil {
				return // the receiving side learns why
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
	if len(c.givenUp) > 0 {
		out = append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesUnsubscribe: c.givenUp})
	}
	var wanted []string
	for _, key := range c.unasked {
		if n := c.names[key]; n != nil && n.asked.IsZero() {
			n.asked = now
			wanted = append(wanted, key)
		}
	}
	if len(wanted) > 0 {
		out = append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesSubscribe: wanted})
	}
	c.unasked, c.givenUp = nil, nil
	return out
}

// again has a name be asked for once more.
func (c *Client) again(key string, n *name) {
	if !n.asked.IsZero() {
		c.givenUp = append(c.givenUp, key)
		c.unasked = append(c.unasked, key)
		n.asked = time.Time{}
	}
	c.wakeAsking()
}

// hear adds to an update what responses say of names. An answer is one about
// the name itself. Where what a name stood for has gone without a word on the
// name, it has to be asked for again: its successor may not be known here.
func (c *Client) hear(u *model.Update, responses []*discovery.DeltaDiscoveryResponse) {
	nothing, other := c.said(responses)
	next := c.config.Known().Apply(*u)
	for key, n := range c.names {
		stands := false
		next.Named(key, func(string) { stands = true })
		switch {
		case stands && n.asked.IsZero() && !n.heard:
			continue // it may stand for more
		case stands, nothing[key], other[key]:
			if n.nothing = !stands; !n.heard {
				n.heard = true
				u.Heard = append(u.Heard, key)
			}
		case n.heard && !n.nothing:
			n.heard = false
			u.Unheard = append(u.Unheard, key)
			c.again(key, n)
		}
	}
}

// said are the names of which responses say that they stand for nothing, and
// those of resources that are found by other names.
func (c *Client) said(responses []*discovery.DeltaDiscoveryResponse) (nothing, other map[string]bool) {
	nothing, other = map[string]bool{}, map[string]bool{}
	for _, response := range responses {
		k := c.kind(response.GetTypeUrl())
		if k == nil || k.typeURL != wire.AddressType {
			continue
		}
		c.tellsNews = wire.IsGeneration(response.GetSystemVersionInfo())
		for _, key := range response.GetRemovedResources() {
			nothing[key] = true
		}
		for _, r := range response.GetResources() {
			if held, ok := k.resources[r.GetName()]; !ok || held.rejected {
				continue // what is wrong says nothing
			}
			for _, key := range r.GetAliases() {
				other[key] = true
			}
		}
	}
	return nothing, other
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
		if n.heard {
			u.Unheard = append(u.Unheard, key)
		}
		if !n.asked.IsZero() {
			c.givenUp = append(c.givenUp, key)
		}
	}
	if !c.tellsNews {
		for key, n := range c.names {
			if n.heard && (now.Sub(n.asked) >= askAgain || n.nothing && now.Sub(n.asked) >= askAgainNothing) {
				c.again(key, n)
			}
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
		case since >= keepIdle || (n.nothing || !n.heard) && since >= keepNothing:
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
		if m.nothing != n.nothing {
			if m.nothing {
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
		n := &name{idle: time.Now(), heard: true, nothing: true}
		next.Named(key, func(string) { n.nothing = false })
		c.names[key] = n
		u.Heard = append(u.Heard, key)
	}
}
