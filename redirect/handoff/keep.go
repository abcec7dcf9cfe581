package handoff

import "github.com/tacit-mesh/tacit/redirect/netns"

// Keep says that a pod is there whose namespace the caller has not got: what a
// proxy has of it stays, and leads to the namespace.
func (s *Server) Keep(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.pods[uid]; ok {
		e.trusted = false
		return
	}
	s.keep(uid)
}

// KeepOffered keeps every pod that proxies have sockets of, while nobody else
// says which there are, until Synced: those that have not been named by then are
// removed. Whether one of these has ended, or has merely left the mesh so that its
// connections live on, ended says by its namespace.
func (s *Server) KeepOffered(ended func(*netns.NS) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.synced || s.trust {
		return
	}
	s.trust, s.ended = true, ended
	for uid := range s.offers {
		s.keep(uid).trusted = true
	}
}

// keep makes the entry of a pod that is not known. The caller holds mu.
func (s *Server) keep(uid string) *entry {
	e := &entry{Pod: Pod{UID: uid}, kept: true}
	s.pods[uid] = e
	if fds, ok := s.offers[uid]; ok {
		delete(s.offers, uid)
		s.adopt(e, fds)
	}
	s.changed(uid, false)
	return e
}

// Missing reports whether neither a proxy nor the server has listeners of a pod:
// nobody serves it.
func (s *Server) Missing(uid string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.pods[uid]
	return !ok || e.listeners == nil
}

// letGo closes the namespace that belongs to the entry itself.
func (e *entry) letGo() {
	if e.kept && e.ns != nil {
		e.ns.Close()
		e.ns = nil
	}
}
