package main

import (
	"os"
	"runtime"
	"sync"
	"time"
)

const (
	// A large update keeps one of Go's processors busy for seconds, and the
	// collection of its garbage another. Where there are no more of them, every
	// connection waits until Go's scheduler takes one away again, tens of
	// milliseconds. The kernel's gives way at once, so it is to choose. In quiet
	// times more processors than CPUs would only wake each other. Of four the
	// collection takes one; of two or three it would take a part of each, which
	// goes before what waits for that processor, for up to 10 ms.
	burstProcessors = 4
	// burstFactor is how many times as many as before there are at the most.
	burstFactor = 2
	// burstLasts is how long there are, from the last word of it on.
	burstLasts = 10 * time.Second
)

// processors are those of Go's scheduler.
type processors struct {
	cpus  int // of the machine, that this process may run on
	mu    sync.Mutex
	timer *time.Timer // that has them be as many as before; nil while they are
}

func newProcessors() *processors { return &processors{cpus: runtime.NumCPU()} }

// burst has there be enough for a while. Where a control group's limit or the
// operator has them be fewer than CPUs, there are no more: they would run at
// once and use up the limit the sooner, and then all connections wait.
func (p *processors) burst() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Reset(burstLasts)
		return
	}
	before := runtime.GOMAXPROCS(0)
	more := min(burstProcessors, burstFactor*before)
	if before < p.cpus || before >= more {
		return
	}
	runtime.GOMAXPROCS(more)
	p.timer = time.AfterFunc(burstLasts, func() { p.calm(before) })
}

func (p *processors) calm(before int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = nil
	if _, told := os.LookupEnv("GOMAXPROCS"); told {
		runtime.GOMAXPROCS(before)
		return
	}
	runtime.SetDefaultGOMAXPROCS() // which follows the control group's limit
}
