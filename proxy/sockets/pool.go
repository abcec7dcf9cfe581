package sockets

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

// pod is an enrolled pod and what is held for it.
type pod struct {
	Pod
	listeners Listeners
	fds       []int // copies of the listeners, for an agent that has lost its own
	session   uint64
	pools     []*pool // at most one for each family
}

func (p *pod) pool(family protocol.Family) *pool {
	for _, x := range p.pools {
		if x.family == family {
			return x
		}
	}
	x := &pool{family: family, target: idleSpares}
	p.pools = append(p.pools, x)
	return x
}

// close gives up everything but the listeners, which the feed closes when the
// handler has let go of them.
func (p *pod) close(b *budget, reason error) {
	protocol.CloseAll(p.fds)
	p.fds = nil
	for _, x := range p.pools {
		x.close(b, reason)
	}
}

const (
	idleSpares = 2
	maxSpares  = protocol.MaxWant
)

// budget bounds the spares of all pools together, those on their way
// included. Sockets that somebody waits for are not spares.
type budget struct{ used, limit int }

// grant is how many of n more the budget allows.
func (b *budget) grant(n int) int { return max(0, min(n, b.limit-b.used)) }

// dialing is what a waiter gets: a socket, or why there is none.
type dialing struct {
	fd  int
	err error
}

// pool holds the dialing sockets of one pod and family. A request that finds
// none doubles how many are held; a quiet time halves it.
type pool struct {
	family  protocol.Family
	ready   []int
	asked   int // on their way
	target  int
	taken   int // since the last trim
	waiters []chan dialing
}

// take returns a socket, or a channel on which one will come.
func (p *pool) take(b *budget) (int, chan dialing) {
	p.taken++
	if n := len(p.ready); n > 0 {
		fd := p.ready[n-1]
		p.ready = p.ready[:n-1]
		b.used--
		return fd, nil
	}
	p.target = min(2*p.target, maxSpares)
	w := make(chan dialing, 1)
	p.waiters = append(p.waiters, w)
	return -1, w
}

// leave withdraws a waiter that may have been served.
func (p *pool) leave(w chan dialing) {
	p.waiters = slices.DeleteFunc(p.waiters, func(x chan dialing) bool { return x == w })
}

// ask is how many sockets to ask for now. It refills by halves of the target,
// so that a busy pod needs few messages.
func (p *pool) ask(b *budget) int {
	n := max(0, len(p.waiters)-p.asked)
	have := len(p.ready) + max(0, p.asked-len(p.waiters))
	if have <= p.target/2 {
		n += b.grant(p.target - have)
	}
	p.asked += n
	b.used += n
	return n
}

// put takes what came for a request of so many sockets. Where some are
// missing, nobody waits on: the next dial asks again.
func (p *pool) put(b *budget, requested int, fds []int, err error) {
	requested = min(requested, p.asked)
	p.asked -= requested
	b.used -= requested
	for _, fd := range fds {
		switch {
		case len(p.waiters) > 0:
			p.waiters[0] <- dialing{fd: fd}
			p.waiters = p.waiters[1:]
		case len(p.ready) < p.target:
			p.ready = append(p.ready, fd)
			b.used++
		default:
			unix.Close(fd)
		}
	}
	if err != nil {
		p.fail(err)
	}
}

func (p *pool) fail(err error) {
	for _, w := range p.waiters {
		w <- dialing{fd: -1, err: err}
	}
	p.waiters = nil
}

// trim adapts to less use.
func (p *pool) trim(b *budget) {
	if p.taken < p.target {
		p.target = max(idleSpares, p.target/2)
	}
	p.taken = 0
	for n := len(p.ready); n > p.target; n-- {
		unix.Close(p.ready[n-1])
		p.ready = p.ready[:n-1]
		b.used--
	}
}

// forgetAsked gives up what an agent that is away owed. Waiters wait on.
func (p *pool) forgetAsked(b *budget) {
	b.used -= p.asked
	p.asked = 0
}

func (p *pool) close(b *budget, reason error) {
	p.forgetAsked(b)
	b.used -= len(p.ready)
	protocol.CloseAll(p.ready)
	p.ready = nil
	p.fail(reason)
}

func descriptorLimit() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return int(min(l.Cur, 1<<20))
}

// sameSockets compares by the kernel's cookies: descriptors are only names.
func sameSockets(x, y []int) bool {
	return len(x) > 0 && slices.EqualFunc(x, y, func(a, b int) bool {
		ca, errA := unix.GetsockoptUint64(a, unix.SOL_SOCKET, unix.SO_COOKIE)
		cb, errB := unix.GetsockoptUint64(b, unix.SOL_SOCKET, unix.SO_COOKIE)
		return errA == nil && errB == nil && ca == cb
	})
}
