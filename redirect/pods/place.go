package pods

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/rules"
)

// The proxy's connections to applications carry connMark; what answers them
// is routed back into the pod (Istio ambient's numbers, callsRule apart).
const (
	connMark    = 0x111
	markMask    = 0xfff
	answersRule = 32764 // priorities of routing rules
	callsRule   = 32763
	table       = 100
)

// zone is our conntrack zone in pods: any that nobody else uses.
const zone = 0x7ac

// place is a network namespace and what of ours is in it.
type place struct {
	ns      *netns.NS
	backend Backend
	tool    tool // set by the first write

	written map[rules.Family]written
}

// digest stands for a text of rules, of which there is one for each pod.
type digest [sha256.Size]byte

func digestOf(text string) digest { return sha256.Sum256([]byte(text)) }

// written is what the tables of one family were last brought to.
type written struct {
	want    digest // as it should read
	reads   digest // as it did read; a version of iptables may have its own spelling
	seen    uint64 // flows counted by these rules
	counted uint64 // flows counted by those before
}

func newPlace(ns *netns.NS, b Backend) *place {
	return &place{ns: ns, backend: b, written: map[rules.Family]written{}}
}

func config(pod Pod, released bool) rules.Config {
	s := pod.Skips
	return rules.Config{
		Probes:  pod.Probes,
		DNSPort: protocol.DNSPort, DNSServers: pod.DNSServers,
		OutboundPort: protocol.OutboundPort, PlaintextPort: protocol.PlaintextPort, HBONEPort: protocol.HBONEPort,
		Mark: protocol.Mark, ConnMark: connMark, Mask: markMask, Zone: zone,
		SkipInbound: s.Inbound, SkipOutbound: s.Outbound, SkipOutboundCIDRs: s.OutboundCIDRs,
		Released: released,
	}
}

// capture puts in place what captures the pod, and says what had to change.
func (p *place) capture(ctx context.Context, pod Pod) (changes []string, err error) {
	err = p.ns.Do(func() error {
		kept, err := keepHalfClosed()
		if err != nil {
			return err
		}
		if kept {
			changes = append(changes, "conntrack timeouts")
		}
		for _, f := range families() {
			changed, err := ensureReturn(f)
			if err != nil {
				return fmt.Errorf("route for answers to the proxy: %w", err)
			}
			if changed {
				changes = append(changes, fmt.Sprintf("IPv%d route or rule", f))
			}
		}
		written, err := p.write(ctx, config(pod, false).Tables)
		changes = append(changes, written...)
		return err
	})
	return changes, err
}

// release leaves only what keeps captured connections alive.
func (p *place) release(ctx context.Context) error {
	return p.ns.Do(func() error {
		_, err := p.write(ctx, config(Pod{}, true).Tables)
		return err
	})
}

// families are those that the kernel has.
func families() []rules.Family {
	if _, err := os.Stat("/proc/thread-self/net/if_inet6"); errors.Is(err, os.ErrNotExist) {
		return []rules.Family{rules.IPv4}
	}
	return []rules.Family{rules.IPv4, rules.IPv6}
}

// write brings every family's tables to what is wanted, where they differ.
func (p *place) write(ctx context.Context, tables func(rules.Family) []rules.Table) (changes []string, err error) {
	first := p.tool == tool{}
	if first {
		if p.tool, err = choose(ctx, p.backend); err != nil {
			return nil, err
		}
	}
	for _, f := range families() {
		changed, err := p.writeFamily(ctx, f, tables(f))
		if err != nil {
			return changes, err
		}
		if changed {
			changes = append(changes, fmt.Sprintf("IPv%d rules", f))
		}
	}
	if first {
		err = p.leaveOthers(ctx)
	}
	return changes, err
}

func (p *place) writeFamily(ctx context.Context, f rules.Family, want []rules.Table) (changed bool, err error) {
	have, err := p.tool.save(ctx, f)
	if err != nil {
		return false, err
	}
	last := p.written[f]
	if n := have.Uncaptured(); n < last.seen {
		last.counted, last.seen = last.counted+last.seen, n
	} else {
		last.seen = n
	}
	now := digestOf(rules.Canonical(want))
	if reads := digestOf(have.Ours()); reads == now || last.want == now && reads == last.reads {
		last.want, last.reads = now, reads
		p.written[f] = last
		return false, nil
	}
	if len(want) == 0 {
		err = p.tool.removeFamily(ctx, f, have)
	} else {
		err = p.tool.restore(ctx, f, rules.Restore(want, have))
	}
	if err != nil {
		return false, err
	}
	have, err = p.tool.save(ctx, f)
	if err != nil {
		return false, err
	}
	p.written[f] = written{want: now, reads: digestOf(have.Ours()), counted: last.counted + last.seen}
	return true, nil
}

// leaveOthers takes away what an agent with another setting left in the other
// backend. Ours are in place in this one by now.
func (p *place) leaveOthers(ctx context.Context) error {
	for _, t := range tools() {
		if t != p.tool {
			if err := t.remove(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *place) uncaptured() (n uint64) {
	for _, w := range p.written {
		n += w.counted + w.seen
	}
	return n
}

// find reports whether anything of ours is there.
func (p *place) find(ctx context.Context) (found bool, err error) {
	err = p.ns.Do(func() error {
		for _, f := range families() {
			if ours, err := hasReturn(f); err != nil || ours {
				found = ours
				return err
			}
			for _, t := range tools() {
				saved, err := t.save(ctx, f)
				if err != nil || saved.HasOurs() {
					found = err == nil
					return err
				}
			}
		}
		return nil
	})
	return found, err
}

// isCaptured reports, at little cost, whether an agent has captured the pod.
func (p *place) isCaptured() (captured bool, err error) {
	err = p.ns.Do(func() error {
		captured, err = hasReturn(rules.IPv4)
		return err
	})
	return captured, err
}

// clean takes away everything of ours, of whatever version and backend.
func (p *place) clean(ctx context.Context) error {
	return p.ns.Do(func() error {
		var errs []error
		for _, t := range tools() {
			errs = append(errs, t.remove(ctx))
		}
		for _, f := range families() {
			errs = append(errs, removeReturn(f))
		}
		_, err := forgetHalfClosed()
		errs = append(errs, err)
		return errors.Join(errs...)
	})
}

// Cleanup takes away everything that an agent ever made in the network
// namespace at path, and nothing else. Captured connections break.
func Cleanup(ctx context.Context, path string) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := newPlace(ns, BackendAuto).clean(ctx); err != nil {
		return fmt.Errorf("clean up %s: %w", path, err)
	}
	return nil
}
