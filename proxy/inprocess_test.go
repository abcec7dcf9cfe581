package proxy

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/model"
)

// patience bounds each wait.
const patience = 30 * time.Second

// oneApp dials the one application that there is.
type oneApp struct {
	sockets.Provider
	address string
}

func (a oneApp) Dial(ctx context.Context, _ string, _ netip.Addr, _ netip.AddrPort) (*net.TCPConn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.address)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (a oneApp) Absence() time.Duration { return 0 }

// oneServer is a mesh with one pod, whose port 8080 is an application's on
// loopback. Whoever connects to its address reaches the pod in clear.
type oneServer struct {
	*Proxy
	address string
}

func startOneServer(t *testing.T, app net.Addr, policies ...*model.Policy) *oneServer {
	t.Helper()
	return startOneServerWith(t, app, Config{Recorder: telemetry.New(telemetry.Options{})}, policies...)
}

// startOneServerWith has a recorder, and switches, of one's own.
func startOneServerWith(t *testing.T, app net.Addr, config Config, policies ...*model.Policy) *oneServer {
	t.Helper()
	config.Identities, config.MaxConnsPerPod, config.State = identity.NewStore(nil), 100, state.New()
	config.MaxQuestionsOutside = cmp.Or(config.MaxQuestionsOutside, 100)
	config.Sockets = oneApp{address: app.String()}
	p := New(config)
	p.draining = true // it accepts nothing by itself
	p.Add(sockets.Pod{UID: "uid", Namespace: "mesh", Name: "server", Addresses: []netip.Addr{arrived4}}, sockets.Listeners{})
	p.State.Apply(model.Update{
		Workloads: []*model.Workload{{
			UID: "k//Pod/mesh/server", PodUID: "uid", Name: "server", Namespace: "mesh", Addresses: []netip.Addr{arrived4},
		}},
		Policies: policies, AddressesComplete: true, PoliciesComplete: true,
	})
	l := listening(t)
	pod := p.localPod("uid") // still there for who is accepted at the very end
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = p.conns.Run(ctx, p.State) })
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				c := p.begin(pod, conn.(*net.TCPConn), telemetry.Inbound)
				defer p.end(c)
				c.setDestination(netip.AddrPortFrom(arrived4, 8080))
				p.carryPlaintext(c)
			})
		}
	})
	t.Cleanup(func() {
		stop()
		_ = l.Close()
		p.closePods()
		running.Wait()
		p.providers.Close()
		p.limits.Close()
	})
	return &oneServer{p, l.Addr().String()}
}

// arrived is a connection to the server that nothing has been decided about.
func (s *oneServer) arrived(t *testing.T) *Connection {
	t.Helper()
	l := listening(t)
	defer func() { _ = l.Close() }()
	caller, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = caller.Close() })
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := s.begin(s.localPod("uid"), conn.(*net.TCPConn), telemetry.Inbound)
	t.Cleanup(func() { s.end(c) })
	c.setDestination(netip.AddrPortFrom(arrived4, 8080))
	return c
}

func listening(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// echoing sends back what it gets.
func echoing(t *testing.T) net.Addr {
	t.Helper()
	l := listening(t)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return l.Addr()
}

// connect is denied by a reset where nothing is waited for.
func (s *oneServer) connect(t *testing.T) (net.Conn, error) {
	t.Helper()
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, c.SetDeadline(time.Now().Add(patience))
}

func (s *oneServer) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := s.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// exchangeText sends a text and wants it back.
func exchangeText(c net.Conn, text []byte) error {
	if _, err := c.Write(text); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, len(text)))
	return err
}

func wasReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
