package identity

import "time"

// Material that no pod holds is kept for a while, for the pod that comes next:
// its source may be away just then. After that it is forgotten, as keys are
// for pods that are here.
const (
	importedLife = 10 * time.Minute // of an earlier process's
	// releasedLife bounds how long that of the last pod which has gone is
	// kept, beside half of the time that it has left.
	releasedLife = time.Hour
	// forgetStep bounds a wait for a moment of the wall clock: timers stand
	// still while a machine sleeps.
	forgetStep = time.Minute
)

// kept is material that no pod holds.
type kept struct {
	material *Material
	until    time.Time
}

// forgetting forgets what has been kept for long enough, and returns when to do
// so again; never if nothing is kept.
func (s *Store) forgetting() (again <-chan time.Time, stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
	if len(s.kept) == 0 {
		return nil, func() {}
	}
	wait, now := forgetStep, s.now()
	for _, k := range s.kept {
		wait = min(wait, k.until.Sub(now))
	}
	timer := time.NewTimer(wait)
	return timer.C, func() { timer.Stop() }
}

// The functions below are called with mu held.

// keep keeps what the last pod of an identity leaves behind. Where the source
// decides by a single pod, no other would ever ask for the same.
func (s *Store) keep(e *entry) {
	m := e.material.Load()
	if m == nil || e.subject.Selectors != "" || !m.ValidAt(s.now()) {
		return
	}
	now := s.now()
	s.kept[e.subject] = kept{m, now.Add(min(m.NotAfter().Sub(now)/2, releasedLife))}
	s.wakeRun()
}

func (s *Store) takeKept(subject Subject) *Material {
	s.forget()
	k := s.kept[subject]
	delete(s.kept, subject)
	return k.material
}

func (s *Store) forget() {
	forgotten := false
	for subject, k := range s.kept {
		if !s.now().Before(k.until) {
			delete(s.kept, subject)
			forgotten = true
		}
	}
	if forgotten {
		s.announce() // to whoever has exported it
	}
}
