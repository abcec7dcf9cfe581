package relay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Parking watches the sockets on which nothing has moved for a while. All that
// is left of one is its descriptor: without a goroutine, whose stack is most of
// what an idle connection takes, and without what Go's poller and package net
// know of it, which is most of the rest.
//
// Its sockets are in an epoll set of its own, which is itself in Go's poller:
// one goroutine waits for all of them. Busy sockets stay where they are, for
// whom a goroutine of their own is as fast.
type Parking struct {
	every time.Duration
	set   *os.File
	raw   syscall.RawConn

	mu     sync.Mutex
	moving map[Parkable]awake
	some   chan struct{} // tells that moving is no longer empty
	parked map[uint64]Parkable
	last   uint64 // a number of parked, never given twice: an event may be late
}

// awake is a connection that is not parked, at the last look.
type awake struct {
	moved       int64 // bytes
	wait, pause int   // looks until it is asked again, and from one time to the next
}

// longestPause is a minute's looks.
const longestPause = int(time.Minute / Idle)

// Parkable is a connection with a goroutine that waits for a socket.
type Parkable interface {
	// Moved is how many bytes have been moved so far, in both directions.
	Moved() int64
	// Rest asks the goroutine to Park the socket and to end, if it waits for
	// nothing else. It must not wait itself.
	Rest()
	// Wake tells that a parked socket has something to read, be it FIN or a
	// reset. It must not wait.
	Wake()
}

// Spot is a parked socket.
type Spot struct {
	fd     int
	number uint64
}

// Write writes what the kernel takes at once, as [Socket.Write] does.
func (s Spot) Write(p []byte) (n int, err error) {
	w := writing{p: p}
	w.try(s.fd)
	return w.n, w.err
}

// Idle is how long nothing moves until a connection is parked, at least: so
// short that of a burst of new ones few have a goroutine at a time, as the
// runtime keeps for good some of what each needs, and so long that what the
// coming and going takes (a dozen system calls) is little of a processor.
const Idle = 250 * time.Millisecond

// NewParking parks what has moved nothing for a time, usually Idle. Run must
// follow.
func NewParking(idle time.Duration) (*Parking, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("set of idle sockets: %w", os.NewSyscallError("epoll_create1", err))
	}
	err = unix.SetNonblock(fd, true) // so that Go's poller takes it
	set := os.NewFile(uintptr(fd), "idle sockets")
	p := &Parking{every: idle, set: set, some: make(chan struct{}, 1), moving: map[Parkable]awake{}, parked: map[uint64]Parkable{}}
	if err == nil {
		p.raw, err = set.SyscallConn()
	}
	if err != nil {
		set.Close()
		return nil, fmt.Errorf("set of idle sockets: %w", err)
	}
	return p, nil
}

// Run watches until ctx ends. What is parked by then is woken no more.
func (p *Parking) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var looking sync.WaitGroup
	looking.Go(func() { p.findIdle(ctx) })
	stop := context.AfterFunc(ctx, func() { _ = p.set.SetReadDeadline(past) })
	var failed error
	err := p.raw.Read(func(fd uintptr) (done bool) {
		failed = p.wakeReady(int(fd))
		return failed != nil
	})
	ended := !stop()
	cancel()
	looking.Wait()
	p.set.Close()
	if ended {
		return ctx.Err()
	}
	return fmt.Errorf("set of idle sockets: %w", errors.Join(err, failed))
}

// wakeReady wakes all that are ready. The set becomes readable again with the
// next one.
func (p *Parking) wakeReady(set int) error {
	var events [64]unix.EpollEvent
	for {
		n, err := unix.EpollWait(set, events[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("epoll_wait", err)
		}
		for i := range n {
			p.mu.Lock()
			ready := p.parked[numberOf(&events[i])]
			p.mu.Unlock()
			if ready != nil {
				ready.Wake()
			}
		}
		if n < len(events) {
			return nil
		}
	}
}

// findIdle asks those to rest that have moved nothing between two looks. It
// looks at none as long as all are parked.
func (p *Parking) findIdle(ctx context.Context) {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	var idle []Parkable
	for {
		select {
		case <-p.some:
		case <-ctx.Done():
			return
		}
		tick.Reset(p.every)
		for more := true; more; {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			idle, more = p.look(idle[:0])
			for i, c := range idle {
				c.Rest()
				idle[i] = nil
			}
		}
	}
}

// look finds those that are idle, and tells whether there are any that are not
// parked.
func (p *Parking) look(idle []Parkable) (found []Parkable, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c, a := range p.moving {
		switch now := c.Moved(); {
		case now != a.moved:
			a = awake{moved: now}
		case a.wait > 0:
			a.wait--
		default: // again and again in vain if its application does not read
			a.pause = min(2*a.pause+1, longestPause)
			a.wait = a.pause
			idle = append(idle, c)
		}
		p.moving[c] = a
	}
	if len(p.moving) > 0 {
		return idle, true
	}
	p.moving = map[Parkable]awake{} // without the room for the most that there ever were
	return idle, false
}

// Enter has a connection asked to rest when it is idle.
func (p *Parking) Enter(c Parkable) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enter(c)
}

// enter is called with mu held.
func (p *Parking) enter(c Parkable) {
	if len(p.moving) == 0 {
		select {
		case p.some <- struct{}{}:
		default:
		}
	}
	p.moving[c] = awake{moved: -1}
}

// Leave forgets a connection that is not parked.
func (p *Parking) Leave(c Parkable) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.moving, c)
}

// Park watches the socket in place of the goroutine of a connection that has
// entered, and takes it over unless it fails. From then on, and be it before
// Park returns, the connection is woken when there is something to read. Unpark
// must follow.
func (p *Parking) Park(s *Socket, c Parkable) (Spot, error) {
	fd, err := s.duplicate()
	if err != nil {
		return Spot{}, err
	}
	p.mu.Lock()
	p.last++
	spot := Spot{fd, p.last}
	p.parked[spot.number] = c
	delete(p.moving, c)
	p.mu.Unlock()
	// One event each: whoever is woken has to come and see.
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(uint32(spot.number)), Pad: int32(uint32(spot.number >> 32))}
	if err := p.control(fd, unix.EPOLL_CTL_ADD, &event); err != nil {
		unix.Close(fd)
		p.leaveSpot(spot)
		return Spot{}, err
	}
	s.Close() // which the other descriptor outlasts
	return spot, nil
}

// Unpark gives the socket back to the connection, which has a goroutine again
// and has entered. Nothing may use the spot afterwards.
func (p *Parking) Unpark(spot Spot) (*Socket, error) {
	_ = p.control(spot.fd, unix.EPOLL_CTL_DEL, nil) // it is there, unless the set is closed
	p.leaveSpot(spot)
	return newSocket(os.NewFile(uintptr(spot.fd), "socket"))
}

func (p *Parking) leaveSpot(spot Spot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.parked[spot.number]
	delete(p.parked, spot.number)
	p.enter(c)
}

// Parked is how many sockets are parked now.
func (p *Parking) Parked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.parked)
}

func (p *Parking) control(fd, op int, event *unix.EpollEvent) error {
	var failed error
	err := p.raw.Control(func(set uintptr) {
		failed = os.NewSyscallError("epoll_ctl", unix.EpollCtl(int(set), op, fd, event))
	})
	return errors.Join(err, failed)
}

// numberOf is that in an event, which has room for 64 bits.
func numberOf(e *unix.EpollEvent) uint64 { return uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32 }
