package handoff

// Stats are counters since the start, and what is there now.
type Stats struct {
	Proxies  int    // connected, draining ones included
	Sockets  uint64 // dialing sockets handed out
	Failures uint64 // requests for dialing sockets that were not met whole
}

// Stats is for metrics.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Proxies: len(s.proxies), Sockets: s.handedOut, Failures: s.failures}
}

// count notes the answer to a request for dialing sockets.
func (s *Server) count(sockets int, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handedOut += uint64(sockets)
	if failed {
		s.failures++
	}
}
