package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/xds/model"
)

// pod is an enrolled pod of this node.
type pod struct {
	sockets.Pod
	workload string // the UID by which the control plane knows it; empty: it is found by address
	network  string // until the control plane has named it
	identity model.Identity
	claim    *identity.Claim    // to its certificate
	ctx      context.Context    // ends when the pod is gone: its connections then are reset
	kill     context.CancelFunc // endCarried must follow, if it may have connections
	share    *share
	live     sync.WaitGroup // connections and accept loops
	before   *pod           // what shares ctx and may have connections still
	left     chan struct{}  // closed once its last connection, and those of before, have ended
	carried  atomic.Int64   // connections
	budget   *hbone.Budget

	listeners sockets.Listeners
}

// podMemory caps what a pod's streams may hold unread, beyond 64 KB each.
const podMemory = 64 << 20

// Add implements sockets.Handler.
func (p *Proxy) Add(facts sockets.Pod, l sockets.Listeners) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.pods[facts.UID]
	if old == nil {
		old = p.leaving[facts.UID] // it came back
	}
	id := model.Identity{TrustDomain: facts.TrustDomain, Namespace: facts.Namespace, ServiceAccount: facts.ServiceAccount}
	attested := identity.Pod{
		Identity: id, UID: facts.UID, Name: facts.Name, Node: p.Node, Labels: facts.Labels, Composition: facts.Composition,
	}
	added := &pod{
		Pod: facts, workload: p.workloadUID(facts), network: p.Network, identity: id, listeners: l,
		claim:  p.claim(attested),
		before: old,
		left:   make(chan struct{}),
	}
	if old != nil { // with its connections, and what they hold
		added.ctx, added.kill = old.ctx, old.kill
		added.share, added.budget = old.share, old.budget
		if p.leaving[facts.UID] != old {
			go p.leave(old)
		}
	} else {
		added.share, added.budget = newShare(p.MaxConnsPerPod), hbone.NewBudget(podMemory)
		added.ctx, added.kill = context.WithCancel(context.Background())
	}
	p.pods[facts.UID] = added
	if p.draining {
		return
	}
	// Reserved before Accept, so that whoever waits for the last connection
	// cannot miss one.
	p.live.Add(3)
	added.live.Add(3)
	go p.accept(added, l.Outbound, added.share.outbound, p.outbound)
	go p.accept(added, l.Plaintext, added.share.inbound, p.plaintext)
	go p.accept(added, l.HBONE, added.share.inbound, p.inbound)
	p.answer(added)
}

// claim is called with mu held.
func (p *Proxy) claim(attested identity.Pod) *identity.Claim {
	if there := p.pods[attested.UID]; there != nil {
		there.claim.Change(attested)
		return there.claim
	}
	return p.Identities.Claim(attested)
}

// Remove implements sockets.Handler. Connections of a pod that merely is no
// longer captured live on, without new ones. What decisions about their requests
// ask in the mesh is asked as before, over the connections that there are.
func (p *Proxy) Remove(uid string, gone bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if removed := p.pods[uid]; removed != nil {
		delete(p.pods, uid)
		removed.claim.Release()
		p.leaving[uid] = removed
		go p.leave(removed)
	}
	if gone {
		if left := p.leaving[uid]; left != nil {
			left.kill()
			go p.endCarried() // without mu
		}
		p.endTunnels(uid, true)
	}
}

// endTunnels ends what a pod has begun, now or once nothing uses it any more.
// Called with mu held.
func (p *Proxy) endTunnels(uid string, now bool) {
	p.pool.Evict(func(k hbone.Key) bool { return k.SourceUID == uid }, now)
	go p.endCalls(uid) // without mu
}

// leave forgets a pod once its last connection has ended, and those from
// before it was captured again.
func (p *Proxy) leave(pod *pod) {
	pod.live.Wait()
	if pod.before != nil {
		<-pod.before.left
		pod.before = nil
	}
	close(pod.left)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leaving[pod.UID] != pod {
		return
	}
	delete(p.leaving, pod.UID)
	if p.pods[pod.UID] == nil {
		pod.kill()
		p.endTunnels(pod.UID, false)
	}
}

// Synced implements sockets.Handler.
func (p *Proxy) Synced() {
	select {
	case <-p.synced:
	default:
		close(p.synced)
	}
}

// localPod finds an enrolled pod of this node.
func (p *Proxy) localPod(uid string) *pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods[uid]
}

// callingPod is the same, or one whose connections outlive its capture: requests
// on these may still have to be asked about.
func (p *Proxy) callingPod(uid string) *pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := p.pods[uid]
	if found == nil {
		found = p.leaving[uid]
	}
	if found == nil || found.ctx.Err() != nil {
		return nil
	}
	return found
}

// accept hands each connection to its own goroutine, at most a pod's share of
// them at a time. It ends when the listener is closed. Every pod has three of
// these, which wait most of the time: what they do besides is in functions of
// its own, so that they do with the smallest stack that there is, of 2 KB.
func (p *Proxy) accept(pod *pod, l net.Listener, slots chan struct{}, handle func(*pod, *net.TCPConn)) {
	defer p.live.Done()
	defer pod.live.Done()
	var pause time.Duration
	for {
		slots <- struct{}{}
		conn, err := l.Accept()
		if err == nil {
			pause = 0
			p.accepted(pod, conn, handle)
			continue
		}
		give(slots)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Out of descriptors, most likely: those who wait stay in
		// the kernel's queue.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		if !pod.rest(pause) {
			return
		}
	}
}

// rest reports whether the pod is still there after a pause.
func (pod *pod) rest(pause time.Duration) bool {
	select {
	case <-time.After(pause):
		return true
	case <-pod.ctx.Done():
		return false
	}
}

// accepted handles a connection for which accept has taken a slot. Once it has
// ended, carried must follow.
func (p *Proxy) accepted(pod *pod, conn net.Conn, handle func(*pod, *net.TCPConn)) {
	p.live.Add(1)
	pod.live.Add(1)
	pod.carried.Add(1)
	go handle(pod, conn.(*net.TCPConn))
}

// carried gives back what accept has reserved for a connection.
func (p *Proxy) carried(pod *pod, slots chan struct{}) {
	pod.carried.Add(-1)
	give(slots)
	pod.live.Done()
	p.live.Done()
}

// stopAccepting closes this process's descriptors of the listeners. The
// listening sockets live on in the agent and in the next proxy.
func (p *Proxy) stopAccepting() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draining = true
	p.drain()
	for _, pod := range p.pods {
		pod.listeners.Close()
	}
}

// closePods resets what is still alive.
func (p *Proxy) closePods() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for uid, pod := range p.pods {
		pod.kill()
		pod.claim.Release()
		delete(p.pods, uid)
	}
	for _, pod := range p.leaving {
		pod.kill()
	}
	go p.endCarried() // without mu
}

// has reports whether the address is the pod's: a captured connection may have
// been meant for any other, which is not the pod's to receive.
func (pod *pod) has(a netip.Addr) bool { return slices.Contains(pod.Addresses, a.Unmap()) }

// budgetOf is the memory share of a pooled connection's source.
func (p *Proxy) budgetOf(k hbone.Key) *hbone.Budget {
	if pod := p.localPod(k.SourceUID); pod != nil {
		return pod.budget
	}
	return nil
}
