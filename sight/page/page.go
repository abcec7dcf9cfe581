// Package page serves the map of the mesh to a person's browser: who talked to
// whom within the last hour, how, and what was denied and why.
//
// The page holds no library and loads nothing from elsewhere. It is meant for
// the loopback device or a Unix socket, to which "tacit ui" leads a browser.
// Whoever asks has to have entered with a token that is good once, which tacit
// ui gets for a person who has proven who they are; what is shown is about the
// namespaces that this person may see. What does not belong here: who a person
// is (a Door), and what is known of the mesh (sight/hour, xds/model).
package page

import (
	"context"
	"embed"
	"encoding/json"
	"io/fs"
	"net/http"
	"time"

	"github.com/tacit-mesh/tacit/sight/hour"
	"github.com/tacit-mesh/tacit/xds/model"
)

//go:embed static
var static embed.FS

// Viewer is a person. Sees may be called from any goroutine.
type Viewer interface {
	// Sees reports whether they may see what is in a namespace; "" is
	// everything.
	Sees(ctx context.Context, namespace string) bool
}

// Door finds out who a person is.
type Door interface {
	// Challenge is what a proof has to be about; "" where none is needed.
	Challenge() (string, error)
	// Open judges a proof.
	Open(ctx context.Context, p Proof) (Viewer, error)
}

// Proof is what tacit ui says to be let in.
type Proof struct {
	Challenge string `json:"challenge,omitempty"`
	// Request names the CertificateSigningRequest by which the API server
	// vouches for the person, and Signature, of Signed, is by its key.
	Request   string `json:"request,omitempty"`
	Signature []byte `json:"signature,omitempty"`
}

// Server answers browsers.
type Server struct {
	Hour *hour.Hour
	// Mesh is the mesh as it is now.
	Mesh func() *model.Snapshot
	// Silent are the nodes of which nothing is heard.
	Silent func(now time.Time) []string
	// Lacks says how far a policy is not enforced as written; nil: nobody knows.
	Lacks func(policy string) []string
	Door  Door

	rooms rooms
}

// Handler answers everything.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	files, _ := fs.Sub(static, "static") // it is there: it is embedded
	mux.Handle("GET /", s.entered(http.FileServerFS(files)))
	mux.Handle("GET /api/map", s.entered(http.HandlerFunc(s.drawMap)))
	mux.Handle("GET /api/workload", s.entered(http.HandlerFunc(s.detail)))
	mux.Handle("GET /api/events", s.entered(http.HandlerFunc(s.events)))
	mux.HandleFunc("GET /enter", s.enter)
	mux.HandleFunc("GET /challenge", s.challenge)
	mux.HandleFunc("POST /login", s.login)
	return guarded(mux)
}

func answer(w http.ResponseWriter, code int, document any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(document) // fails only when the client is gone
}

// problem is the answer to a question that cannot be answered.
type problem struct {
	Error string `json:"error"`
}
