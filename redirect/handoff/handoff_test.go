package handoff

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	cfg.Socket = filepath.Join(t.TempDir(), "run", "agent.sock")
	s := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

// dial connects as soon as the socket is there.
func dial(t *testing.T, s *Server) *protocol.Conn {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("unixpacket", s.cfg.Socket)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			conn := protocol.NewConn(c.(*net.UnixConn))
			conn.SetReadDeadline(deadline)
			return conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func greet(t *testing.T, c *protocol.Conn, version uint32) error {
	t.Helper()
	if err := c.Send(&protocol.FromProxy{Message: &protocol.FromProxy_Hello{Hello: &protocol.Hello{Version: version}}}); err != nil {
		return err
	}
	m, fds, err := c.ReceiveFromAgent()
	protocol.CloseAll(fds)
	if err == nil && m.GetHello() == nil {
		t.Errorf("greeted by %v", m)
	}
	return err
}

func TestWhoMayConnect(t *testing.T) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	group := strings.SplitN(strings.SplitN(string(own), "\n", 2)[0], ":", 3)[2]
	for name, tt := range map[string]struct {
		cfg     Config
		refused bool
	}{
		"the proxy's user":                  {Config{ProxyUID: os.Geteuid()}, false},
		"another user":                      {Config{ProxyUID: 54321}, true},
		"the proxy's control group":         {Config{ProxyUID: os.Geteuid(), ProxyCgroup: group}, false},
		"another control group":             {Config{ProxyUID: os.Geteuid(), ProxyCgroup: "/tacit-proxy"}, true},
		"another user in the control group": {Config{ProxyUID: 54321, ProxyCgroup: group}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.cfg.ProxyUID != os.Geteuid() && os.Geteuid() != 0 {
				t.Skip("needs root, to enter another user's directory")
			}
			if err := greet(t, dial(t, start(t, tt.cfg)), protocol.Version); (err != nil) != tt.refused {
				t.Errorf("refused: %v, want %v", err, tt.refused)
			}
		})
	}
}

func TestInCgroup(t *testing.T) {
	for _, tt := range []struct {
		content, want string
		in            bool
	}{
		{"0::/kubepods/pod1/c1\n", "/kubepods/pod1", true},
		{"0::/kubepods/pod1\n", "/kubepods/pod1/", true},
		{"0::/kubepods/pod10/c1\n", "/kubepods/pod1", false},
		{"0::/other/kubepods/pod1\n", "/kubepods/pod1", false},
		{"5:memory:/kubepods/pod1\n1:name=systemd:/x:y\n", "/x:y", true},
		{"", "/kubepods/pod1", false},
		{"garbage", "/kubepods/pod1", false},
	} {
		if got := inCgroup(tt.content, tt.want); got != tt.in {
			t.Errorf("inCgroup(%q, %q) = %v", tt.content, tt.want, got)
		}
	}
}

func TestDirectoryMustBeTheProxys(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	err := New(Config{Socket: filepath.Join(dir, "agent.sock"), ProxyUID: os.Geteuid()}).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "0700") {
		t.Errorf("a directory that others may enter: %v", err)
	}
}

func TestVersionsTooFarApart(t *testing.T) {
	s := start(t, Config{ProxyUID: os.Geteuid()})
	c := dial(t, s)
	if err := greet(t, c, protocol.Version+2); err != nil {
		t.Fatalf("no greeting that would tell the proxy: %v", err)
	}
	if m, _, err := c.ReceiveFromAgent(); err == nil {
		t.Errorf("the agent went on: %v", m)
	}
}

func TestTooManyProxies(t *testing.T) {
	s := start(t, Config{ProxyUID: os.Geteuid()})
	for range maxProxies {
		c := dial(t, s)
		if err := greet(t, c, protocol.Version); err != nil {
			t.Fatal(err)
		}
		if m, _, err := c.ReceiveFromAgent(); err != nil || m.GetRestore() == nil {
			t.Fatalf("%v, %v", m, err)
		}
		if err := c.Send(&protocol.FromProxy{Message: &protocol.FromProxy_Want{Want: &protocol.Want{Uid: "none", Family: protocol.Family_FAMILY_IPV4, Count: 1}}}); err != nil {
			t.Fatal(err)
		}
		if m, _, err := c.ReceiveFromAgent(); err != nil || m.GetSockets().GetError() == "" { // it is registered by now
			t.Fatalf("%v, %v", m, err)
		}
	}
	if got, want := s.Stats(), (Stats{Proxies: maxProxies, Failures: maxProxies}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
	c := dial(t, s)
	if err := greet(t, c, protocol.Version); err != nil {
		t.Fatal(err)
	}
	for {
		if _, _, err := c.ReceiveFromAgent(); err != nil {
			break
		}
	}
}

// A memory that its sender can still change is not kept.
func TestUnsealedStateIsRefused(t *testing.T) {
	s := start(t, Config{ProxyUID: os.Geteuid()})
	c := dial(t, s)
	if err := greet(t, c, protocol.Version); err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(t.TempDir(), "state")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := c.Send(&protocol.FromProxy{Message: &protocol.FromProxy_Save{Save: &protocol.Save{}}}, int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	for {
		if _, _, err := c.ReceiveFromAgent(); err != nil {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state >= 0 {
		t.Error("kept")
	}
}
