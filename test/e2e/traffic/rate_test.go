package traffic

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// Connections between one client and one server may come as fast as they
// like: the ports of closed ones, which rest for a minute, do not run out.
// This shows it with few ports instead of many seconds.
func TestPortsDoNotRunOut(t *testing.T) {
	const (
		perSecond, duration = 200, 6 * time.Second // of each of the cases
		ports               = 2 * perSecond        // a port that is free again after a second will do
	)
	m := e2e.Start(t)
	setting(t, m, serverPod, "ip_local_port_range", fmt.Sprintf("40000 %d", 40000+ports-1))
	serveGreeting(m)
	var all sync.WaitGroup
	for _, to := range []string{"198.18.2.10", "fd00:7ac1:2::10"} {
		for _, how := range []struct{ what, from, port string }{
			{"the client closes first", "mesh/client", "8080"},
			{"the server closes first", "mesh/twin", "8081"},
			{"into the mesh", "outside/plain", "8080"},
		} {
			all.Go(func() {
				if _, err := hurry(t, m, how.from, net.JoinHostPort(to, how.port), perSecond, duration); err != nil {
					t.Errorf("%s, %s: %v", how.what, to, err)
				}
			})
		}
	}
	all.Wait()
}

// TestPortsDoNotRunOut in full: a minute at 2,000 connections a second.
func TestMinuteOfConnections(t *testing.T) {
	if os.Getenv("TACIT_LONG") == "" {
		t.Skip("takes minutes and a whole machine: set TACIT_LONG=1")
	}
	const perSecond, duration = 2000, time.Minute
	m := e2e.Start(t)
	serveGreeting(m)
	// Without it the client itself would run out, with or without a mesh.
	setting(t, m, "mesh/client", "tcp_tw_reuse", "1")
	for _, how := range []struct{ what, from, port string }{
		{"the client closes first", "mesh/client", "8080"},
		{"the server closes first", "mesh/twin", "8081"}, // what rests of one pair is in another's way, see README
	} {
		made, err := hurry(t, m, how.from, net.JoinHostPort("198.18.2.10", how.port), perSecond, duration)
		if err != nil {
			t.Errorf("%s: %v", how.what, err)
		}
		if wanted := int64(perSecond * duration.Seconds()); made < wanted*95/100 {
			t.Errorf("%s: %d connections, want %d: the machine is too slow to tell", how.what, made, wanted)
		}
		t.Logf("%s: %d connections", how.what, made)
	}
}

// hurry makes connections at a rate for a while, or at a lower one if the
// machine cannot: what is late by more than a twentieth of a second is left out.
func hurry(t *testing.T, m *e2e.Mesh, from, to string, perSecond int, duration time.Duration) (made int64, err error) {
	const clients = 32
	all, ctx := errgroup.WithContext(t.Context())
	pace, end, count := rate.NewLimiter(rate.Limit(perSecond), perSecond/20), time.Now().Add(duration), new(atomic.Int64)
	for range clients {
		// One thread each, which enters the pod once.
		all.Go(func() error {
			return m.Pod(from).Do(func() error {
				for time.Now().Before(end) {
					if err := pace.Wait(ctx); err != nil {
						return err
					}
					if err := greet(ctx, to); err != nil {
						return err
					}
					count.Add(1)
				}
				return nil
			})
		})
	}
	err = all.Wait()
	return count.Load(), err
}

// setting changes a kernel parameter of a pod.
func setting(t *testing.T, m *e2e.Mesh, pod, name, value string) {
	t.Helper()
	if err := m.Pod(pod).Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0) }); err != nil {
		t.Fatal(err)
	}
}

const greeting = "hello\n"

// serveGreeting greets on port 8080, where the client closes first, and on
// 8081, where the server does.
func serveGreeting(m *e2e.Mesh) {
	m.Serve(serverPod, ":8080", func(c *net.TCPConn) {
		_, _ = io.WriteString(c, greeting)
		_, _ = io.Copy(io.Discard, c)
	})
	m.Serve(serverPod, ":8081", func(c *net.TCPConn) { _, _ = io.WriteString(c, greeting) })
}

// greet makes a connection, from the pod that the thread has entered, and
// closes it once the greeting has come.
func greet(ctx context.Context, to string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", to)
	if err != nil {
		return err
	}
	c := conn.(*net.TCPConn)
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(e2e.Patience))
	got := make([]byte, len(greeting))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c)
	return err
}
