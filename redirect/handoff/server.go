// Package handoff makes sockets inside pods and passes them to the node's
// proxy, which has no privilege to make them itself.
//
// Server and proxy both keep a pod's listeners: while one of the two is
// replaced, the kernel goes on queueing connections, and the one that stayed
// gives the listeners back. What does not belong here: which pods there are,
// and the rules that lead their traffic to the listeners.
package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Config says where the proxy connects and who it must be.
type Config struct {
	// Socket is made in a directory that the proxy's user alone may enter.
	Socket   string
	ProxyUID int
	// ProxyCgroup is the control group, such as "/kubepods.slice/...", in or
	// below which the proxy must run; empty leaves that unchecked.
	ProxyCgroup string
	// CheckGroups says, by the lines of its /proc/PID/cgroup, why a process is
	// not the proxy; nil leaves that unchecked.
	CheckGroups func(groups string) error
	Log         *zap.Logger
}

// Pod is what the proxy is told about a pod.
type Pod struct {
	UID            string
	Name           string
	Namespace      string
	ServiceAccount string
	TrustDomain    string
	Addresses      []netip.Addr
	Labels         map[string]string // at most protocol.MaxLabels long, or none are passed on
	// Composition is at most protocol.MaxComposition long, or none is passed
	// on.
	Composition model.Composition
	// NoLoopbackRoute says that the rules in the pod are not ours, and lack
	// what sockets need that are bound to the loopback device.
	NoLoopbackRoute bool
	// DNS says that the pod's DNS queries are redirected to the proxy, too.
	DNS bool
}

// Server is the agent's side.
type Server struct {
	cfg Config

	mu      sync.Mutex
	pods    map[string]*entry
	offers  map[string][]int // from a proxy, for pods that have not been added yet
	synced  bool
	trust   bool                 // pods that proxies offer are kept until all are known
	ended   func(*netns.NS) bool // whether the pod of a namespace has; set with trust
	proxies map[*proxy]struct{}
	state   int // the newest memfd of a proxy, -1 if none

	handedOut, failures uint64 // as in Stats

	wg sync.WaitGroup
}

// entry is a pod that is to be served. It has no listeners while a port is
// taken: by another process, or by a proxy that has not connected yet.
type entry struct {
	Pod
	ns        *netns.NS
	listeners []int
	dns       []int // those for DNS, of a pod with that
	// kept is a pod of which the agent knows no more than a proxy has shown
	// it; its namespace, if that is known, is the entry's own.
	kept bool
	// trusted is a kept pod that only a proxy has named.
	trusted bool
}

// New makes a server; pods may be added before Run.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Server{cfg: cfg, pods: map[string]*entry{}, offers: map[string][]int{}, proxies: map[*proxy]struct{}{}, state: -1}
}

// Run serves proxies until the context ends. Then it closes every descriptor;
// a proxy keeps its own.
func (s *Server) Run(ctx context.Context) error {
	l, err := s.listen(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer s.closeAll()
	defer s.wg.Wait()
	defer cancel()
	defer stop()
	defer l.Close()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // for lack of descriptors, for example
			s.cfg.Log.Error("accept a proxy", zap.Error(err))
			select {
			case <-time.After(time.Second):
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		s.wg.Go(func() {
			if err := s.serve(ctx, c); err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn("connection to a proxy ended", zap.Error(err))
			}
		})
	}
}

// listen makes the socket anew. Who may connect is the directory's business,
// so that its owner needs no write permission on a file of ours.
func (s *Server) listen(ctx context.Context) (*net.UnixListener, error) {
	if err := s.ensureDirectory(filepath.Dir(s.cfg.Socket)); err != nil {
		return nil, err
	}
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the socket of an earlier agent: %w", err)
	}
	l, err := listenOpen(ctx, s.cfg.Socket)
	if err != nil {
		return nil, fmt.Errorf("listen for the proxy: %w", err)
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false) // a successor's socket may be there by then
	return ul, nil
}

// listenOpen makes a socket that everybody who reaches it may connect to. Only
// the umask decides that without a moment in which the path could be made to
// name something else; it is the process's, so it is changed on a thread that
// has one of its own and ends after this.
func listenOpen(ctx context.Context, path string) (l net.Listener, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			err = fmt.Errorf("unshare umask: %w", err)
			return
		}
		unix.Umask(0o111)
		l, err = (&net.ListenConfig{}).Listen(ctx, "unixpacket", path)
	}()
	<-done
	return l, err
}

func (s *Server) ensureDirectory(dir string) error {
	if err := os.Mkdir(dir, 0o700); err == nil {
		if err := os.Chown(dir, s.cfg.ProxyUID, -1); err != nil {
			return fmt.Errorf("directory for the proxy's socket: %w", err)
		}
	} else if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("directory for the proxy's socket: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("directory for the proxy's socket: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || info.Mode().Perm()&0o077 != 0 || int(st.Uid) != s.cfg.ProxyUID {
		return fmt.Errorf("directory %s for the proxy's socket: must have mode 0700 and belong to the proxy's user %d", dir, s.cfg.ProxyUID)
	}
	return nil
}

func (s *Server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.pods {
		e.close()
		e.letGo()
	}
	for _, fds := range s.offers {
		protocol.CloseAll(fds)
	}
	protocol.CloseAll([]int{s.state})
	s.pods, s.offers, s.state = map[string]*entry{}, map[string][]int{}, -1
}

// Add makes sure that the pod has listeners and that proxies know it. It may
// be called again, to retry or with new facts. The namespace stays open, and
// the caller's, until Remove.
func (s *Server) Add(p Pod, ns *netns.NS) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.pods[p.UID]
	if !ok {
		e = &entry{}
		s.pods[p.UID] = e
	} else if e.ns == nil || e.ns.ID() != ns.ID() {
		e.close()
	}
	e.letGo()
	e.Pod, e.ns, e.kept, e.trusted = p, ns, false, false
	if fds, ok := s.offers[p.UID]; ok {
		delete(s.offers, p.UID)
		s.adopt(e, fds)
	}
	s.changed(p.UID, false) // also without listeners: proxies keep what they have of it
	err := e.listen()
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("%w: by a process in the pod, or by a proxy that has not connected yet", err)
	}
	return err
}

// Remove closes the pod's listeners, here and in proxies. Gone says that the
// pod itself has ended, so that proxies end its connections too.
func (s *Server) Remove(uid string, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(uid, gone)
}

func (s *Server) remove(uid string, gone bool) {
	e, ok := s.pods[uid]
	if !ok {
		return
	}
	e.close()
	e.letGo()
	delete(s.pods, uid)
	s.changed(uid, gone)
}

// Synced says that every pod there is has been added, kept or removed.
func (s *Server) Synced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.synced {
		return
	}
	s.synced = true
	for uid, fds := range s.offers {
		protocol.CloseAll(fds)
		delete(s.offers, uid)
	}
	for uid, e := range s.pods {
		if e.trusted {
			s.remove(uid, e.ns != nil && s.ended(e.ns))
		}
	}
	for p := range s.proxies {
		p.wakeWriter()
	}
}

// changed says to every proxy that there is news of a pod.
func (s *Server) changed(uid string, gone bool) {
	for p := range s.proxies {
		p.news[uid] = gone
		p.wakeWriter()
	}
}
