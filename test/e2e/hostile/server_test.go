package hostile

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/test/e2e"
)

const rogueAddress = "198.18.2.66"

func rogueManifest(dataplane string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: rogue
  namespace: mesh
  labels: {tacit.mesh/dataplane: %s}
  annotations: {tacit.mesh/redirection: enabled}
spec:
  nodeName: b
  serviceAccountName: rogue
  containers: [{name: app, image: none}]
status:
  podIPs: [{ip: "%s"}]
`, dataplane, rogueAddress)
}

// rogue is a pod that answers HBONE by itself, with a certificate of the mesh:
// it has the port before the agent can take it.
type rogue struct {
	m  *e2e.Mesh
	mu sync.Mutex
	// config and handle are for the connections from now on; made counts all.
	config *tls.Config
	handle func(*attacker)
	made   int
	open   map[*attacker]struct{}
	resets uint16 // wanted so far
}

func newRogue(t *testing.T, m *e2e.Mesh, config *tls.Config) *rogue {
	t.Helper()
	s := &rogue{m: m, config: config, open: map[*attacker]struct{}{}}
	s.handle = func(a *attacker) {
		if a.awaitData() {
			_ = a.Close()
		}
	}
	m.MustApply(rogueManifest("disabled"))
	m.Serve("mesh/rogue", ":15008", s.serve)
	m.MustApply(rogueManifest("enabled"))
	m.Eventually("the mesh takes the pod for a captured one", func() error {
		c, err := m.Pod("mesh/client").Dial(m.Context(), rogueAddress+":80")
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(deadline())
		_, _ = io.WriteString(c, "hello")
		_, _ = c.Read(make([]byte, 1))
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.made == 0 {
			return errors.New("no connection has come")
		}
		return nil
	})
	return s
}

func (s *rogue) serve(c *net.TCPConn) {
	s.mu.Lock()
	config, handle := s.config, s.handle
	s.made++
	s.mu.Unlock()
	a := newAttacker(tls.Server(c, config))
	_ = a.SetDeadline(deadline())
	if a.Handshake() != nil {
		return
	}
	s.mu.Lock()
	s.open[a] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, a)
	}()
	if _, err := io.ReadFull(a.Conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	if a.WriteSettings() == nil {
		handle(a)
		a.drain()
	}
}

// behave is for connections from now on; those that there are end.
func (s *rogue) behave(handle func(*attacker)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle = handle
	for a := range s.open {
		_ = a.Close()
	}
}

func (s *rogue) use(config *tls.Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config = config
}

// expectReset calls, and wants a reset without too many connections made to it.
// It returns the caller's address, which it chooses: a reset may come so soon
// that connect itself tells of it, and leaves no socket to ask.
func (s *rogue) expectReset(t *testing.T) net.Addr {
	t.Helper()
	s.mu.Lock()
	before := s.made
	s.mu.Unlock()
	s.resets++
	pod := s.m.Pod("mesh/client")
	from := net.TCPAddrFromAddrPort(netip.AddrPortFrom(pod.Address(), 20000+s.resets))
	var c net.Conn
	err := pod.Do(func() (err error) {
		c, err = (&net.Dialer{LocalAddr: from}).DialContext(s.m.Context(), "tcp", rogueAddress+":80")
		return err
	})
	if err == nil {
		_ = c.SetDeadline(deadline())
		_, err = io.ReadAll(c)
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the application saw %v, want a reset", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.made - before; n > 100 {
		t.Errorf("%d connections were made to the server", n)
	}
	return from
}

// awaitData reads a request and the first of what follows it: from then on
// nobody may ask another server instead.
func (a *attacker) awaitData() bool {
	for {
		f, err := a.ReadFrame()
		if err != nil {
			return false
		}
		if _, ok := f.(*http2.DataFrame); ok {
			return true
		}
	}
}

// drain reads until the connection ends.
func (a *attacker) drain() { _, _ = io.Copy(io.Discard, a.Conn) }

// respond answers the first stream.
func (a *attacker) respond(status string, more ...string) { a.respondTo(1, status, more...) }

func (a *attacker) respondTo(id uint32, status string, more ...string) {
	if status != "" {
		more = append([]string{":status", status}, more...)
	}
	_ = a.request(id, append(more, "server", "rogue")...)
}

// A server that misbehaves costs its callers their connections to it, and
// nobody else anything.
func TestRogueServers(t *testing.T) {
	t.Parallel() // it waits for deadlines
	m, ca := start(t)
	undisturbed := bystander(t, m)
	defer undisturbed()
	own := func(uri string) *tls.Config {
		c := clientTLS(certificate(t, ca, identitytest.Template(t, uri)))
		c.ClientAuth = tls.RequireAnyClientCert
		return c
	}
	s := newRogue(t, m, own("spiffe://cluster.local/ns/mesh/sa/rogue"))
	data := make([]byte, 16<<10)
	for _, c := range []struct {
		name   string
		behave func(*attacker) // on each connection, once something has come
		reason string          // that the client's node knows
	}{
		{"answers in another protocol", func(a *attacker) { _, _ = io.WriteString(a.Conn, "HTTP/1.1 200 OK\r\n\r\n") }, "frame"},
		{"closes at once", func(a *attacker) { _ = a.Close() }, "hbone stream not established"},
		{"denies", func(a *attacker) { a.respond("401") }, "status 401"},
		{"answers without a status", func(a *attacker) { a.respond("") }, "PROTOCOL_ERROR"},
		{"answers with a status that is none", func(a *attacker) { a.respond("2e2") }, "PROTOCOL_ERROR"},
		{"answers with too much", func(a *attacker) { a.respond("200", many(10, "x", strings.Repeat("y", 3000))...) }, "PROTOCOL_ERROR"},
		{"pushes", func(a *attacker) {
			_ = a.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}, "PUSH_PROMISE"},
		{"sends before it answers", func(a *attacker) { _ = a.WriteData(1, false, data) }, "PROTOCOL_ERROR"},
		{"sends more than it may", func(a *attacker) {
			a.respond("200")
			_ = a.WriteData(1, false, make([]byte, 100<<10))
		}, "FLOW_CONTROL_ERROR"},
		{"says that it has joined what it has not", func(a *attacker) {
			a.respond("200", "tacit-joined", "1")
			_ = a.WriteRSTStream(1, http2.ErrCodeConnect)
		}, "reset"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.behave(func(a *attacker) {
				if a.awaitData() {
					c.behave(a)
				}
			})
			conn, err := m.Dial("mesh/client", rogueAddress+":80")
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(deadline())
			_, _ = io.WriteString(conn, "hello")
			answer, err := io.ReadAll(conn)
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the application saw %d bytes and %v, want a reset", len(answer), err)
			}
			wantReason(t, m, conn.LocalAddr(), c.reason)
		})
	}
	t.Run("takes no streams", func(t *testing.T) {
		s.behave(func(a *attacker) {
			_ = a.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
			a.drain()
		})
		s.expectReset(t)
	})
	t.Run("leaves each time", func(t *testing.T) {
		s.behave(func(a *attacker) { _ = a.WriteGoAway(0, http2.ErrCodeNo, nil) })
		s.expectReset(t)
	})
	t.Run("is another", func(t *testing.T) {
		s.use(own("spiffe://cluster.local/ns/mesh/sa/server"))
		reached := false
		s.behave(func(*attacker) { reached = true })
		wantReason(t, m, s.expectReset(t), "expected one of")
		if reached {
			t.Error("a server of another identity was spoken to")
		}
	})
}

// wantReason finds out what the client's node knows of a connection from an
// address, which has ended.
func wantReason(t *testing.T, m *e2e.Mesh, from net.Addr, reason string) {
	t.Helper()
	m.Eventually("the client's node knows why", func() error {
		for _, ended := range m.Connections("a", "ended", "mesh/client", "") {
			if ended.Source.Address.String() != from.String() {
				continue
			}
			if !strings.Contains(ended.Reason, reason) {
				t.Errorf("it ended because %q, want %q", ended.Reason, reason)
			}
			return nil
		}
		return errors.New("the connection has not ended")
	})
}

// A server that gives no window leaves its callers' bytes with them.
func TestRogueServerWithoutWindow(t *testing.T) {
	m, ca := start(t)
	undisturbed := bystander(t, m)
	defer undisturbed()
	config := clientTLS(certificate(t, ca, identitytest.Template(t, "spiffe://cluster.local/ns/mesh/sa/rogue")))
	config.ClientAuth = tls.RequireAnyClientCert
	s := newRogue(t, m, config)
	s.behave(func(a *attacker) {
		_ = a.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		for {
			f, err := a.ReadFrame()
			if err != nil {
				return
			}
			if h, ok := f.(*http2.MetaHeadersFrame); ok {
				a.respondTo(h.StreamID, "200")
			}
		}
	})
	before := usageOf(t, m, "a")
	var callers sync.WaitGroup
	for range 150 {
		c, err := m.Dial("mesh/client", rogueAddress+":80")
		if err != nil {
			t.Fatal(err)
		}
		callers.Go(func() { // until nothing more is taken
			_ = c.SetWriteDeadline(time.Now().Add(2 * time.Second))
			_, _ = io.Copy(c, zeros{})
		})
	}
	callers.Wait()
	if now := usageOf(t, m, "a"); now.memory > before.memory+memory {
		t.Errorf("%d MB before, %d MB with stalled streams", before.memory>>20, now.memory>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
