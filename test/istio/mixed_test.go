package istio

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/zds/zdstest"
	"github.com/tacit-mesh/tacit/test/servers"
	"github.com/tacit-mesh/tacit/test/world"
	"github.com/tacit-mesh/tacit/xds/model"
)

const (
	foreignPod = "mesh/foreign"
	foreignIP  = "198.18.3.10"
)

var foreignID = model.Identity{TrustDomain: "cluster.local", Namespace: "mesh", ServiceAccount: "foreign"}

// standIn is HBONE by Istio's own library in the pod of a node without Tacit, as
// who the pod is by istiod's word.
type standIn struct {
	*mesh
	program         string
	cert, key, root string
	serving         *world.Program
}

func (m *mesh) newStandIn() *standIn {
	m.t.Helper()
	dir, err := servers.Build(m.t.Context(), "hbone", os.Stderr)
	m.must(err)
	source := m.subscribe("foreign", m.proxyToken("c"), servers.IstiodCluster, foreignID, time.Hour)
	c := source.update()
	source.stop()
	private, err := x509.MarshalPKCS8PrivateKey(c.Certificate.PrivateKey)
	m.must(err)
	var chain []byte
	for _, der := range c.Certificate.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	s := &standIn{
		mesh: m, program: filepath.Join(dir, "hbone"),
		cert: filepath.Join(m.Dir(), "foreign.crt"), key: filepath.Join(m.Dir(), "foreign.key"), root: m.roots(),
	}
	m.must(os.WriteFile(s.cert, chain, 0o600))
	m.must(os.WriteFile(s.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	return s
}

func (s *standIn) command(args ...string) *exec.Cmd {
	return s.Pod(foreignPod).Command(context.Background(), s.program, append(args, "-cert", s.cert, "-key", s.key, "-root", s.root)...)
}

// serve starts it, and starts it again as a kubelet does until it has the port.
func (s *standIn) serve() {
	s.t.Helper()
	s.eventually("the stand-in for ztunnel serves", func() (err error) {
		if s.serving == nil {
			if s.serving, err = world.Launch("hbone", filepath.Join(s.Dir(), "logs", "hbone.log"), s.command("-listen", foreignIP+":15008")); err != nil {
				return err
			}
			s.t.Cleanup(func() { _ = s.serving.Kill() })
		}
		select {
		case <-s.serving.Ended():
			s.serving = nil
			return errors.New("it has ended")
		default:
		}
		// It does not take the source's place: by that it is known.
		saw, err := s.Call("mesh/client", foreignIP+":8080")
		if err == nil && saw != foreignIP {
			err = fmt.Errorf("the server sees %s", saw)
		}
		return err
	})
}

// call asks a server by HBONE.
func (s *standIn) call(to string) error {
	host, _, err := net.SplitHostPort(to)
	s.must(err)
	const text = "four score and seven"
	cmd := s.command("-via", host+":15008", "-to", to)
	cmd.Stdin = strings.NewReader(text)
	said, err := cmd.CombinedOutput()
	if err == nil && !strings.HasSuffix(string(said), foreignIP+"\n"+text) {
		err = errors.New("another echo")
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// mixed has a node of another proxy beside those with Tacit, which it becomes,
// and becomes again: both ways, under policies, and with pods that talk.
func (m *mesh) mixed() {
	m.t.Helper()
	s := m.newStandIn()
	s.serve()
	if n := m.Metric("a", "istio_tcp_connections_opened_total", "reporter=source", "connection_security_policy=mutual_tls", "destination_principal="+foreignID.String()); n == 0 {
		m.t.Error("no connection to the other node was mutual TLS")
	}
	only := policy{"AuthorizationPolicy", "mesh", "foreign", `{selector: {matchLabels: {app: server}}, rules: [{from: [{source: {principals: ["cluster.local/ns/mesh/sa/foreign"]}}]}]}`}
	m.apply(only.yaml())
	m.eventually("only the other node's pod is let in", func() error { return m.denied(call{"mesh/client", serverIP + ":8080"}) })
	if err := s.call(serverIP + ":8080"); err != nil {
		m.t.Errorf("from the other node: %v", err)
	}
	for name, refused := range map[string]struct{ to, status string }{
		"another port":   {serverIP + ":15001", "400"},
		"a port of none": {serverIP + ":9", "503"},
	} {
		if err := s.call(refused.to); err == nil || !strings.Contains(err.Error(), refused.status) {
			m.t.Errorf("%s: %v", name, err)
		}
	}
	m.withdraw(only)
	never := policy{"AuthorizationPolicy", "mesh", "foreign", `{action: DENY, rules: [{from: [{source: {principals: ["cluster.local/ns/mesh/sa/foreign"]}}]}]}`}
	m.apply(never.yaml())
	m.eventually("the other node's pod is refused", func() error {
		if err := s.call(serverIP + ":8080"); err == nil || !strings.Contains(err.Error(), "401") {
			return fmt.Errorf("the answer is %w", err)
		}
		return nil
	})
	m.withdraw(never)
	m.eventually("the other node's pod is let in again", func() error { return s.call(serverIP + ":8080") })
	stop := m.talk(call{"mesh/client", serverIP + ":8080"}, call{"mesh/server", nearIP + ":8080"})
	live := s.there()
	s.back(live)
	stop("with a node on the move")
}

// there gives the node to Tacit: the agent has the ports as soon as the stand-in
// has let go of them. The connection that it returns is by way of Tacit.
func (s *standIn) there() net.Conn {
	s.t.Helper()
	s.introduce("c")
	s.must(s.serving.Kill())
	s.must(s.Node("c").StartProxy(s.context()))
	s.eventually("Tacit serves the node", func() error {
		saw, err := s.Call("mesh/client", foreignIP+":8080")
		if err == nil && saw != clientIP {
			err = fmt.Errorf("the server sees %s", saw)
		}
		return err
	})
	if _, err := s.Call(foreignPod, serverVIP+":80"); err != nil {
		s.t.Errorf("from the node: %v", err)
	}
	live, err := s.Dial("mesh/client", foreignIP+":8080")
	s.must(err)
	s.must(live.SetDeadline(time.Now().Add(patience)))
	return live
}

// back gives the node to the stand-in: agent and proxy are told to end, and the
// ports are free while the proxy still carries a connection.
func (s *standIn) back(live net.Conn) {
	s.t.Helper()
	answers := bufio.NewReader(live)
	if _, err := answers.ReadString('\n'); err != nil {
		s.t.Error(err)
	}
	node := s.Node("c")
	s.must(node.Agent().Signal(unix.SIGTERM))
	s.must(node.Proxy().Signal(unix.SIGTERM))
	s.serving = nil
	s.serve()
	_, err := fmt.Fprintln(live, "still here")
	s.must(err)
	if said, err := answers.ReadString('\n'); err != nil || said != "still here\n" {
		s.t.Errorf("a connection from before answers %q: %v", said, err)
	}
	_ = live.Close()
	s.must(node.Proxy().Wait(s.context()))
}

// talk has pods call again and again; stop ends that, and tells of any call that
// has failed.
func (m *mesh) talk(all ...call) (stop func(while string)) {
	ctx, cancel := context.WithCancel(m.t.Context())
	var calling sync.WaitGroup
	var mu sync.Mutex
	calls, failures := map[call]int{}, map[call]error{}
	for _, c := range all {
		calling.Go(func() {
			for ctx.Err() == nil {
				_, err := m.Call(c.from, c.to)
				mu.Lock()
				calls[c]++
				if err != nil {
					failures[c] = err
				}
				mu.Unlock()
			}
		})
	}
	m.t.Cleanup(func() { cancel(); calling.Wait() })
	return func(while string) {
		m.t.Helper()
		cancel()
		calling.Wait()
		m.t.Logf("%s: calls %v", while, calls)
		for _, c := range all {
			if calls[c] == 0 || failures[c] != nil {
				m.t.Errorf("%s: of %d calls %s to %s: %v", while, calls[c], c.from, c.to, failures[c])
			}
		}
	}
}

// introduce starts a node's agent and names the node's pods of the mesh to it,
// as Istio's CNI agent does. One whose ports are still taken it tries again.
func (m *mesh) introduce(name string) {
	m.t.Helper()
	node := m.Node(name)
	istio, err := zdstest.Listen(node.ZDSSocket())
	m.must(err)
	m.t.Cleanup(func() { _ = istio.Close() })
	m.must(node.StartAgent(m.context()))
	conn, err := istio.Accept(m.context())
	m.must(err)
	m.t.Cleanup(func() { _ = conn.Close() })
	for _, pod := range m.Pods() {
		if pod.Node != node || !strings.HasPrefix(pod.Key, "mesh/") {
			continue
		}
		m.must(zdstest.Capture(pod))
		m.must(zdstest.CaptureDNS(pod))
		var taken *zdstest.Nack
		if err := m.enrol(conn, pod); !errors.As(err, &taken) {
			m.must(err)
		}
	}
	m.must(conn.SnapshotSent())
}
