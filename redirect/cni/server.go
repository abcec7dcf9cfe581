package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/netutil"

	"github.com/tacit-mesh/tacit/redirect/procs"
)

// Agent does what the plugin asks for.
type Agent interface {
	// Add captures the pod if it is enrolled, and returns when that is done.
	// The error is ErrNotReady if the agent cannot tell.
	Add(context.Context, Attachment) (enrolled bool, err error)
	// Check is Add without doing anything: an error says what is missing.
	Check(context.Context, Attachment) (enrolled bool, err error)
	// Del hears that the attachment ends.
	Del(Attachment)
}

const (
	// plugins at once: one waits for each enrolled pod that is being made,
	// and those that are not enrolled must not wait behind them.
	plugins        = 1024
	maxBody        = 64 << 10
	requestTimeout = 5 * time.Second // to arrive
	maxTimeout     = 2 * time.Minute
)

// Server answers plugins on a socket that root alone reaches.
type Server struct {
	Socket string
	Agent  Agent
	Log    *zap.Logger
}

// Run serves until the context ends.
func (s *Server) Run(ctx context.Context) error {
	listener, err := s.listen(ctx)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: s.handler(), ReadTimeout: requestTimeout, IdleTimeout: requestTimeout, MaxHeaderBytes: 8 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err = server.Serve(netutil.LimitListener(listener, plugins))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("serve the CNI plugin: %w", err)
}

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	dir := filepath.Dir(s.Socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory for the CNI plugin's socket: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("directory for the CNI plugin's socket: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || info.Mode().Perm()&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("directory %s for the CNI plugin's socket: must have mode 0700 and belong to user %d", dir, os.Geteuid())
	}
	if err := os.Remove(s.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the socket of an earlier agent: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", s.Socket)
	if err != nil {
		return nil, fmt.Errorf("listen for the CNI plugin: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // a successor's socket may be there by then
	return &privateListener{l.(*net.UnixListener), s.Log}, nil
}

// privateListener accepts processes of our own user alone.
type privateListener struct {
	*net.UnixListener
	log *zap.Logger
}

func (l *privateListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if err := checkPeer(c); err != nil {
			l.log.Warn("refused a process that connects as the CNI plugin", zap.Error(err))
			c.Close()
			continue
		}
		return c, nil
	}
}

func checkPeer(c *net.UnixConn) error {
	cred, err := procs.Peer(c)
	if err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d runs as user %d", cred.Pid, cred.Uid)
	}
	return nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathAdd, s.answer(s.Agent.Add))
	mux.HandleFunc("POST "+PathCheck, s.answer(s.Agent.Check))
	mux.HandleFunc("POST "+PathDel, s.answer(func(_ context.Context, a Attachment) (bool, error) {
		s.Agent.Del(a)
		return false, nil
	}))
	return mux
}

func (s *Server) answer(do func(context.Context, Attachment) (bool, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var a Attachment
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&a); err != nil {
			http.Error(w, fmt.Sprintf("request of the CNI plugin: %v", err), http.StatusBadRequest)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), min(max(a.Timeout, 0), maxTimeout))
		defer cancel()
		enrolled, err := do(ctx, a)
		if errors.Is(err, ErrNotReady) {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		answer := Answer{Enrolled: enrolled}
		if err != nil {
			answer.Error = err.Error()
			s.Log.Error("a pod that is enrolled does not start", zap.String("pod", a.Namespace+"/"+a.Pod), zap.String("uid", a.UID), zap.Error(err))
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // the plugin says what it has not got
	}
}
