package page

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

// Bounds on who is let in.
const (
	tokenLife   = time.Minute
	sessionLife = 4 * time.Hour // by then who a person is has to be shown again
	maxWaiting  = 64            // tokens, and as many sessions
	maxProof    = 16 << 10
	cookieName  = "tacit-session"
)

// rooms are the tokens that are good once, and the sessions they were exchanged
// for, by their hashes: looking one up tells nothing by how long it takes.
type rooms struct {
	mu               sync.Mutex
	tokens, sessions map[[sha256.Size]byte]room
}

type room struct {
	viewer Viewer
	until  time.Time
}

// add makes a secret for a viewer; "" if there are too many.
func add(all *map[[sha256.Size]byte]room, v Viewer, life time.Duration, now time.Time) string {
	for key, r := range *all {
		if now.After(r.until) {
			delete(*all, key)
		}
	}
	if len(*all) >= maxWaiting {
		return ""
	}
	if *all == nil {
		*all = map[[sha256.Size]byte]room{}
	}
	secret := rand.Text()
	(*all)[sha256.Sum256([]byte(secret))] = room{v, now.Add(life)}
	return secret
}

// session exchanges a token.
func (r *rooms) session(token string, now time.Time) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := sha256.Sum256([]byte(token))
	found, ok := r.tokens[key]
	delete(r.tokens, key)
	if !ok || now.After(found.until) {
		return ""
	}
	return add(&r.sessions, found.viewer, sessionLife, now)
}

func (r *rooms) viewer(session string, now time.Time) Viewer {
	r.mu.Lock()
	defer r.mu.Unlock()
	found, ok := r.sessions[sha256.Sum256([]byte(session))]
	if !ok || now.After(found.until) {
		return nil
	}
	return found.viewer
}

func (s *Server) challenge(w http.ResponseWriter, _ *http.Request) {
	text, err := s.Door.Challenge()
	if err != nil {
		answer(w, http.StatusTooManyRequests, problem{err.Error()})
		return
	}
	answer(w, http.StatusOK, Proof{Challenge: text})
}

// Entrance is the answer to a proof that is good.
type Entrance struct {
	Token string `json:"token"` // for /enter?token=
}

// login gives a token for a proof. No page can ask for it: of those there is an
// Origin, or another type of content.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	var p Proof
	if r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Origin") != "" {
		answer(w, http.StatusForbidden, problem{"this is for tacit ui"})
		return
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxProof)).Decode(&p); err != nil {
		answer(w, http.StatusBadRequest, problem{"no proof: " + err.Error()})
		return
	}
	viewer, err := s.Door.Open(r.Context(), p)
	if err != nil {
		answer(w, http.StatusForbidden, problem{err.Error()})
		return
	}
	s.rooms.mu.Lock()
	token := add(&s.rooms.tokens, viewer, tokenLife, time.Now())
	s.rooms.mu.Unlock()
	if token == "" {
		answer(w, http.StatusTooManyRequests, problem{"too many people are on their way in: try again in a minute"})
		return
	}
	answer(w, http.StatusOK, Entrance{token})
}

// enter exchanges a token for a session.
func (s *Server) enter(w http.ResponseWriter, r *http.Request) {
	session := s.rooms.session(r.URL.Query().Get("token"), time.Now())
	if session == "" {
		answer(w, http.StatusForbidden, problem{"this address was used, or is too old: run tacit ui again"})
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: session, Path: "/", MaxAge: int(sessionLife / time.Second), HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

type viewerKey struct{}

// entered lets those pass who have a session.
func (s *Server) entered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var viewer Viewer
		if cookie, err := r.Cookie(cookieName); err == nil {
			viewer = s.rooms.viewer(cookie.Value, time.Now())
		}
		if viewer == nil {
			answer(w, http.StatusUnauthorized, problem{"nobody is known by this session: run tacit ui again"})
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), viewerKey{}, viewer)))
	})
}

func viewerOf(r *http.Request) Viewer { return r.Context().Value(viewerKey{}).(Viewer) }
