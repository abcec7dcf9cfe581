// Package ztunnel answers as ztunnel's admin port does, so that "istioctl
// ztunnel-config" works with this proxy, too.
//
// It tells everything that the proxy knows, private keys apart, to whoever can
// connect: it belongs on a loopback address of a network namespace that is the
// proxy's own. What does not belong here: what the tacit command asks
// (proxy/admin), and any way to end the proxy.
package ztunnel

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Pod is one of this node.
type Pod struct {
	UID      string
	Name     string // "NAMESPACE/NAME"
	Identity model.Identity
}

// Certificate is what the proxy has for an identity.
type Certificate struct {
	Identity    model.Identity
	Leaf        *x509.Certificate   // nil: there is none yet
	Authorities []*x509.Certificate // by which its peers are judged
	Err         error               // of the last attempt to get one
}

// Server is what the answers are made of. All of it is required; functions are
// called from many goroutines.
type Server struct {
	Snapshot     func() *model.Snapshot
	Certificates func() []Certificate
	Pods         func() []Pod
	Live         func() []admin.Connection
	Level        zap.AtomicLevel // of the log
}

// Handler answers.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /config_dump", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.dump()) // the other side sees that it ends early
	})
	mux.HandleFunc("GET /logging", s.logging)
	mux.HandleFunc("POST /logging", s.setLogging)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	return mux
}

// levels are ztunnel's, by those that there are here. Nothing is logged at the
// level that stands for off.
var levels = map[string]zapcore.Level{
	"off": zapcore.FatalLevel, "error": zapcore.ErrorLevel, "warn": zapcore.WarnLevel, "info": zapcore.InfoLevel,
	"debug": zapcore.DebugLevel, "trace": zapcore.DebugLevel,
}

func (s *Server) logging(w http.ResponseWriter, _ *http.Request) {
	_, _ = fmt.Fprintf(w, "current log level is %s\n", s.Level)
}

// setLogging reads level=LEVEL and reset. There are no levels of single parts.
func (s *Server) setLogging(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if query.Has("reset") {
		s.Level.SetLevel(zapcore.InfoLevel)
	}
	if name := query.Get("level"); name != "" {
		level, ok := levels[strings.ToLower(name)]
		if !ok {
			http.Error(w, fmt.Sprintf("log level %.64q: want one of off, error, warn, info, debug and trace, for the proxy as a whole", name), http.StatusBadRequest)
			return
		}
		s.Level.SetLevel(level)
	}
	s.logging(w, r)
}
