package world

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// ProxyUID is the user that proxies run as.
const ProxyUID = 15001

const (
	controlPort = "15012"
	serverName  = "tacitd.tacit-system.svc"
	trustDomain = "cluster.local"
	metricsPort = 15020 // and readiness one above
)

// Node is a node's network namespace and its two programs.
type Node struct {
	Name      string
	Addresses []netip.Addr // IPv4, then IPv6

	world  *World
	token  string // with which its proxy shows whose it is
	netns  *namespace
	dir    string
	cgroup string
	cpus   []int // those its programs may use; empty: all
	agent  *Program
	proxy  *Program
	rolls  int
}

func (w *World) addNode(name string) error {
	node := &Node{Name: name, Addresses: nodeAddresses(len(w.nodes)), world: w, token: rand.Text(), dir: filepath.Join(w.dir, "nodes", name)}
	if err := os.MkdirAll(node.dir, 0o755); err != nil {
		return err
	}
	for _, private := range []string{node.RunDir(), node.proxyDir()} {
		if err := errors.Join(os.Mkdir(private, 0o700), os.Chown(private, ProxyUID, ProxyUID)); err != nil {
			return err
		}
	}
	if err := w.makeCgroup(node); err != nil {
		return err
	}
	var err error
	if node.netns, err = newNamespace(filepath.Join(node.dir, "netns")); err != nil {
		return err
	}
	w.links++
	link := fmt.Sprintf("node%d", w.links)
	if err := w.backbone.Do(func() error { return linkNode(link, node) }); err != nil {
		return errors.Join(err, node.netns.close())
	}
	w.nodes[name] = node
	for _, pod := range w.pods { // earlier pods, on other nodes
		if err := node.netns.Do(func() error { return routeToPod(pod, "eth0") }); err != nil {
			return err
		}
	}
	return nil
}

// makeCgroup makes the control group of a node's proxies, by which the agent
// knows them; the janitor removes it.
func (w *World) makeCgroup(node *Node) error {
	var out outside
	if err := readSpec(&out); err != nil {
		return err
	}
	if out.Cgroup == "" {
		return nil
	}
	node.cgroup = filepath.Join(out.Cgroup, filepath.Base(w.dir)+"-"+node.Name)
	return os.Mkdir(node.cgroup, 0o755)
}

// address is the node's address of the same family as a.
func (n *Node) address(a netip.Addr) netip.Addr {
	if a.Is4() {
		return n.Addresses[0]
	}
	return n.Addresses[1]
}

// RunDir is where the agent's socket is.
func (n *Node) RunDir() string   { return filepath.Join(n.dir, "agent") }
func (n *Node) proxyDir() string { return filepath.Join(n.dir, "proxy") }

// AdminSocket is the one of the newest proxy.
func (n *Node) AdminSocket() string {
	return filepath.Join(n.proxyDir(), fmt.Sprintf("admin%d.sock", n.rolls%2))
}

// MetricsURL is that of the newest proxy, for [Node.HTTP].
func (n *Node) MetricsURL() string { return n.url(0, "/metrics") }

func (n *Node) url(above int, path string) string {
	// A surge proxy listens beside the one that it replaces.
	port := metricsPort + 10*(n.rolls%2) + above
	return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) + path
}

// Do runs fn on a thread inside the node's network namespace.
func (n *Node) Do(fn func() error) error { return n.netns.Do(fn) }

// Command is a program to run on the node, as root.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return execSpec{Netns: n.netns.path, CPUs: n.cpus, Hostname: n.Name}.command(ctx, name, args)
}

// HTTP is a client inside the node's network namespace.
func (n *Node) HTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return dialIn(ctx, n.netns, address)
		},
		DisableKeepAlives: true,
	}}
}

// Agent is the newest agent started; nil before.
func (n *Node) Agent() *Program { return n.agent }

// Proxy is the newest proxy started; nil before.
func (n *Node) Proxy() *Program { return n.proxy }

// readyTimeout bounds the waits for a program to come up.
const readyTimeout = 30 * time.Second
