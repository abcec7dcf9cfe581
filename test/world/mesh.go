package world

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ControlPlane is one that is not the world's own.
type ControlPlane struct {
	Roots []byte // by which proxies know it, PEM
	// Token is that of a node's proxy.
	Token func(node string) string
	// Args are arguments of a node's proxy that say where it is.
	Args func(node string) []string
}

// Start starts the whole cluster: control plane, every node's agent and
// proxy, and the pods' programs.
func (w *World) Start(ctx context.Context) error {
	if err := w.StartControl(ctx); err != nil {
		return err
	}
	for _, node := range w.Nodes() {
		if err := errors.Join(node.StartAgent(ctx), node.StartProxy(ctx)); err != nil {
			return err
		}
	}
	return w.StartApps(ctx)
}

// NetnsDir is where the agents find the pods' namespaces, as NAMESPACE_NAME.
func (w *World) NetnsDir() string { return filepath.Join(w.dir, "netns") }

func (w *World) caDir() string    { return filepath.Join(w.dir, "ca") }
func (w *World) tokens() string   { return filepath.Join(w.dir, "tokens") }
func (n *Node) tokenFile() string { return filepath.Join(n.proxyDir(), "token") }
func (n *Node) rootFile() string  { return filepath.Join(n.proxyDir(), "ca.crt") }
func (w *World) control4() string { return netip.AddrPortFrom(ControlAddress, 15012).String() }
func (w *World) program(name string) string {
	return filepath.Join(w.config.Programs, name)
}

// StartControl starts tacitd on the backbone and waits until it listens.
func (w *World) StartControl(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := w.writeTokens(); err != nil {
		return err
	}
	args := append([]string{"--from", w.Manifests(), "--listen", w.control4(), "--ca-dir", w.caDir(),
		"--trust-domain", trustDomain, "--tokens", w.tokens(), "--server-name", serverName,
		"--status-file", w.StatusFile()}, w.config.ControlArgs...)
	w.mu.Lock()
	p, err := w.start("tacitd", execSpec{Netns: w.backbone.path}, w.program("tacitd"), args...)
	if err == nil {
		w.control = p
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	return p.ready(ctx, func() error {
		c, err := dialIn(ctx, w.backbone, w.control4())
		if err != nil {
			return err
		}
		_ = c.Close()
		_, err = os.Stat(filepath.Join(w.caDir(), "ca.crt"))
		return err
	})
}

// Control is the newest control plane started; nil before.
func (w *World) Control() *Program {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.control
}

// StatusFile is where the control plane writes the status of policies.
func (w *World) StatusFile() string { return filepath.Join(w.dir, "status.yaml") }

// writeTokens gives each node its token, one line each.
func (w *World) writeTokens() error {
	var lines strings.Builder
	for _, n := range w.Nodes() {
		fmt.Fprintf(&lines, "%s %s\n", n.token, n.Name)
		if err := writeOwned(n.tokenFile(), []byte(n.token+"\n")); err != nil {
			return err
		}
	}
	return os.WriteFile(w.tokens(), []byte(lines.String()), 0o600)
}

// writeOwned writes a file that only the proxy's user and root can read.
func writeOwned(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	return os.Chown(path, ProxyUID, ProxyUID)
}

// StartAgent starts the node's agent and waits until its socket is there.
func (n *Node) StartAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	source := []string{"--node", n.Name, "--from", n.world.Manifests(), "--netns-dir", n.world.NetnsDir()}
	if n.world.config.ZDS {
		source = []string{"--zds", n.ZDSSocket()}
	}
	args := append(source, "--run-dir", n.RunDir(), "--proxy-uid", fmt.Sprint(ProxyUID), "--trust-domain", trustDomain)
	if n.cgroup != "" {
		args = append(args, "--proxy-cgroup", cgroupPath(n.cgroup))
	}
	n.world.mu.Lock()
	p, err := n.world.start("agent-"+n.Name, execSpec{Netns: n.netns.path, CPUs: n.cpus}, n.world.program("tacit-agent"), append(args, n.world.config.AgentArgs...)...)
	if err == nil {
		n.agent = p
	}
	n.world.mu.Unlock()
	if err != nil {
		return err
	}
	return p.ready(ctx, func() error {
		_, err := os.Stat(n.agentSocket())
		return err
	})
}

// ZDSSocket is where the agent looks for Istio's CNI agent.
func (n *Node) ZDSSocket() string { return filepath.Join(n.dir, "ztunnel.sock") }

func (n *Node) agentSocket() string { return filepath.Join(n.RunDir(), "agent.sock") }

// StartProxy starts the node's proxy, without any privilege, and waits until
// it is ready.
func (n *Node) StartProxy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	control, err := n.control()
	if err != nil {
		return err
	}
	port := func(above int) string { return fmt.Sprintf(":%d", metricsPort+10*(n.rolls%2)+above) }
	args := append([]string{"--node", n.Name, "--agent-socket", n.agentSocket(), "--root", n.rootFile(), "--token", n.tokenFile(),
		"--admin-socket", n.AdminSocket(), "--metrics", port(0), "--readiness", port(1)}, control...)
	spec := execSpec{Netns: n.netns.path, CPUs: n.cpus, Cgroup: n.cgroup, User: ProxyUID, Group: ProxyUID, Unprivileged: true}
	n.world.mu.Lock()
	p, err := n.world.start("proxy-"+n.Name, spec, n.world.program("tacit-proxy"), append(args, n.world.config.ProxyArgs...)...)
	if err == nil {
		n.proxy = p
	}
	n.world.mu.Unlock()
	if err != nil {
		return err
	}
	return p.ready(ctx, func() error { return n.proxyReady(ctx) })
}

// control writes what the proxy needs to know its control plane and to be known
// there, and returns the arguments that say where it is.
func (n *Node) control() (args []string, err error) {
	if other := n.world.config.Control; other != nil {
		return other.Args(n.Name), errors.Join(writeOwned(n.rootFile(), other.Roots), writeOwned(n.tokenFile(), []byte(other.Token(n.Name)+"\n")))
	}
	root, err := os.ReadFile(filepath.Join(n.world.caDir(), "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("root certificate (is the control plane started?): %w", err)
	}
	return []string{"--xds", n.world.control4(), "--ca", n.world.control4(), "--server-name", serverName}, writeOwned(n.rootFile(), root)
}

func (n *Node) proxyReady(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url(1, "/healthz/ready"), nil)
	if err != nil {
		return err
	}
	response, err := n.HTTP().Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		return fmt.Errorf("readiness: %s: %s", response.Status, why)
	}
	return nil
}

// RollProxy replaces the node's proxy as a rolling update with surge does:
// the new one is ready before the old one is told to end. It returns the old
// one, which lives until its connections have ended.
func (n *Node) RollProxy(ctx context.Context) (*Program, error) {
	old := n.proxy
	n.rolls++
	if err := n.StartProxy(ctx); err != nil {
		return old, err
	}
	return old, old.Signal(unix.SIGTERM)
}

// ready polls check until it succeeds; it fails at once if the program ends.
func (p *Program) ready(ctx context.Context, check func() error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.ended:
			cancel(errors.New("it has ended"))
		case <-ctx.Done():
		}
	}()
	if err := Poll(ctx, check); err != nil {
		return fmt.Errorf("%s does not get ready: %w; the end of its log:\n%s", p.Name, err, p.tail())
	}
	return nil
}
