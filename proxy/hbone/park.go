package hbone

// A stream on which nothing moves is parked: its goroutine ends, and the
// parking watches the application's socket. What comes from the peer is
// delivered all the same, by the goroutine that reads the tunnel. A stream gets
// its socket and a goroutine back when its application sends, ends or does not
// take what comes, when the peer ends, and when it is over.

// Moved implements relay.Parkable.
func (p *pump) Moved() int64 { return p.counts.Sent.Load() + p.counts.Received.Load() }

// Rest implements relay.Parkable.
func (p *pump) Rest() {
	p.asked.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	if app := p.stream.app; app != nil {
		app.Interrupt()
	}
}

// stayAwake is for a goroutine that waits for more than bytes to read, or is
// about to end.
func (p *pump) stayAwake() {
	if p.c.parking != nil {
		p.c.parking.Leave(p)
	}
}

// park reports whether the stream is parked. It is not before its answer, which
// what was sent is kept for, nor while something waits for the application, nor
// once it is over.
func (p *pump) park() bool {
	p.asked.Store(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over || p.kept != nil || !p.inbox.empty() {
		return false
	}
	spot, err := p.c.parking.Park(p.app, p)
	if err != nil {
		return false // the goroutine goes on waiting
	}
	p.app, p.stream.app = nil, nil
	p.spot, p.parked = spot, p
	p.answer = nil // it was 200, and who relays the stream does not ask for more
	return true
}

// Wake implements relay.Parkable.
func (p *pump) Wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unpark()
}

// unpark gives the stream a goroutine, if it has none. Called with mu held.
func (s *stream) unpark() {
	if p := s.parked; p != nil {
		s.parked = nil
		go p.resume()
	}
}

// resume goes on where the stream was parked.
func (p *pump) resume() {
	app, err := p.c.parking.Unpark(p.spot)
	if err != nil {
		p.brokenApp(err)
		p.end()
		return
	}
	p.app = app
	p.attach(app)
	if !p.run() {
		p.end()
	}
}
