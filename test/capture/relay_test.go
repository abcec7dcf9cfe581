package capture

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/xds/model"
)

// The main thread cannot end, so it must not be the one that newNS gives away.
func TestMain(m *testing.M) {
	if socket := os.Getenv(proxyEnv); socket != "" {
		os.Exit(unprivilegedProxy(socket))
	}
	runtime.LockOSThread()
	goleak.VerifyTestMain(m)
}

// relay stands where the proxy is: it copies bytes to the original
// destination.
type relay struct {
	dial    func(context.Context, string, netip.Addr, netip.AddrPort) (*net.TCPConn, error)
	log     *zap.Logger
	out, in atomic.Int64 // connections that came by way of each listener
	synced  chan struct{}
	once    sync.Once
	wg      sync.WaitGroup

	mu      sync.Mutex
	pods    map[string]sockets.Pod
	removed []string // UIDs, one for each Remove
	conns   map[string]map[net.Conn]bool
}

func newRelay(log *zap.Logger) *relay {
	return &relay{log: log, synced: make(chan struct{}), pods: map[string]sockets.Pod{}, conns: map[string]map[net.Conn]bool{}}
}

func (r *relay) Add(p sockets.Pod, l sockets.Listeners) {
	r.mu.Lock()
	r.pods[p.UID] = p
	r.mu.Unlock()
	r.accept(l.Outbound, func(c *net.TCPConn) { r.serve(p.UID, c, &r.out, false) })
	r.accept(l.Plaintext, func(c *net.TCPConn) { r.serve(p.UID, c, &r.in, true) })
	r.accept(l.HBONE, func(c *net.TCPConn) { c.Close() })
}

func (r *relay) Remove(uid string, gone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pods, uid)
	r.removed = append(r.removed, uid)
	if gone {
		for c := range r.conns[uid] {
			c.Close()
		}
	}
}

func (r *relay) Synced() { r.once.Do(func() { close(r.synced) }) }

func (r *relay) accept(l net.Listener, serve func(*net.TCPConn)) {
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { serve(c.(*net.TCPConn)) })
		}
	})
}

func (r *relay) serve(uid string, c *net.TCPConn, count *atomic.Int64, spoof bool) {
	defer r.track(uid, c)()
	dst, err := sockets.OriginalDst(c)
	if err != nil {
		r.log.Error("relay", zap.Error(err))
		return
	}
	count.Add(1)
	var src netip.Addr
	if spoof {
		src = c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	up, err := r.dial(ctx, uid, src, dst)
	if err != nil {
		r.log.Error("relay", zap.Error(err))
		c.SetLinger(0)
		return
	}
	defer r.track(uid, up)()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(up, c)
		up.CloseWrite()
	}()
	io.Copy(c, up)
	c.CloseWrite()
	<-done
}

// track returns what closes the connection.
func (r *relay) track(uid string, c net.Conn) func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns[uid] == nil {
		r.conns[uid] = map[net.Conn]bool{}
	}
	r.conns[uid][c] = true
	return func() {
		c.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns[uid], c)
	}
}

// closeAll is what the end of the process would do to the connections.
func (r *relay) closeAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conns := range r.conns {
		for c := range conns {
			c.Close()
		}
	}
}

// node is an agent and the proxies that it serves.
type node struct {
	t        *testing.T
	log      *zap.Logger
	dir      string
	proxyUID int
	host     string // path of the network namespace that probes come from; "" for none
	locate   func(pods.Pod) (string, error)
	report   func(pods.Pod, pods.Problem)
	pod      pods.Pod
	set      *pods.Set
	server   *handoff.Server
	relay    *relay
	proxy    *sockets.Agent
	stop     func() // the agent
}

// newNode describes the pod and starts nothing.
func newNode(t *testing.T, ns testNS) *node {
	return &node{
		t: t, log: zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel)), dir: filepath.Join(t.TempDir(), "run"), proxyUID: os.Geteuid(),
		pod: pods.Pod{
			Pod:     handoff.Pod{UID: "uid-1", Name: "pod", Namespace: "default", ServiceAccount: "default", TrustDomain: "cluster.local", Addresses: []netip.Addr{pod4, pod6}},
			NetNS:   ns.path,
			Capture: true,
		},
	}
}

// background runs fn until stop is called or the test ends.
func background(t *testing.T, fns ...func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, fn := range fns {
		wg.Go(func() {
			if err := fn(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("ended by itself: %v", err)
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(stop)
	return stop
}

func (n *node) startAgent(backend pods.Backend) {
	n.server = handoff.New(handoff.Config{Socket: filepath.Join(n.dir, "agent.sock"), ProxyUID: n.proxyUID, Log: n.log.Named("agent")})
	n.set = pods.New(pods.Config{Sockets: n.server, Backend: backend, Node: n.host, Locate: n.locate, Report: n.report, Check: 100 * time.Millisecond, Log: n.log.Named("agent")})
	n.set.Update([]pods.Pod{n.pod})
	n.stop = background(n.t, n.server.Run, n.set.Run)
}

// startProxy returns what ends it as a kill would.
func (n *node) startProxy() (r *relay, a *sockets.Agent, stop func()) {
	r = newRelay(n.log.Named("proxy"))
	a = sockets.NewAgent(sockets.AgentConfig{Socket: filepath.Join(n.dir, "agent.sock"), Log: n.log.Named("proxy")})
	r.dial = a.Dial
	end := background(n.t, func(ctx context.Context) error { return a.Run(ctx, r) })
	stop = sync.OnceFunc(func() {
		end()
		r.closeAll()
		r.wg.Wait()
	})
	n.t.Cleanup(stop)
	n.relay, n.proxy = r, a
	return r, a, stop
}

// start starts both and waits until the pod is captured.
func (n *node) start(backend pods.Backend) {
	n.t.Helper()
	n.startAgent(backend)
	n.startProxy()
	n.await(pods.StateCaptured)
	<-n.relay.synced
}

func (n *node) await(s pods.State) {
	n.t.Helper()
	eventually(n.t, 20*time.Second, fmt.Sprintf("pod %s", s), func() bool {
		all := n.set.Status()
		return len(all) == 1 && reflect.DeepEqual(all[0].Pod, n.pod) && all[0].State == s && (all[0].Settled || s == pods.StateReleasing)
	})
}

func (n *node) update(change func(*pods.Pod)) {
	change(&n.pod)
	n.set.Update([]pods.Pod{n.pod})
}

func (n *node) skip(s model.Skips) {
	n.t.Helper()
	n.update(func(p *pods.Pod) { p.Skips = s })
	n.await(pods.StateCaptured)
}

// echo answers every line with the address that it came from.
func echo(t *testing.T, l net.Listener) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				in := bufio.NewScanner(c)
				for in.Scan() {
					fmt.Fprintf(c, "%s %s\n", c.RemoteAddr().(*net.TCPAddr).IP, in.Text())
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			c.Close()
		}
		wg.Wait()
	})
}

// say sends a line and returns the answer.
func say(c net.Conn, line string) (string, error) {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	var answer []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(c, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(answer), nil
		}
		answer = append(answer, b[0])
	}
}
