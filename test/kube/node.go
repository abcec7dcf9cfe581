package kube

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/test/world"
)

// Node is a node whose power can be cut.
type Node struct {
	addressPlan
	cluster *Cluster
	init    *world.Program // its process 1; nil when it is off
}

//go:embed node manifests
var files embed.FS

// nodeValues are what the files of a node are filled in with.
type nodeValues struct {
	addressPlan
	Peers              []addressPlan
	Gateway4, Gateway6 string
	DNS, PauseImage    string
}

// newNode writes the files of a node, which is off yet.
func (c *Cluster) newNode(plan addressPlan, all []addressPlan, pauseImage string) (*Node, error) {
	n := &Node{addressPlan: plan, cluster: c}
	if err := os.MkdirAll(n.path(""), 0o755); err != nil {
		return nil, err
	}
	values := nodeValues{addressPlan: plan, Gateway4: gateway4, Gateway6: gateway6, DNS: clusterDNS, PauseImage: pauseImage}
	for _, peer := range all {
		if peer != plan {
			values.Peers = append(values.Peers, peer)
		}
	}
	entries, err := files.ReadDir("node")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		text, fillErr := fill("node/"+entry.Name(), values)
		err = errors.Join(err, fillErr, os.WriteFile(n.path(entry.Name()), text, 0o644))
	}
	addresses := []netip.Addr{netip.MustParseAddr(plan.Address4), netip.MustParseAddr(plan.Address6)}
	user := subject{Name: "system:node:" + plan.Name, Organization: []string{"system:nodes"}, Addresses: addresses, DNSNames: []string{plan.Name}}
	return n, errors.Join(err,
		os.WriteFile(n.path("ca.crt"), c.authority.pem(), 0o644),
		os.WriteFile(n.path("resolv.conf"), nil, 0o644), // nothing outside has a name
		os.WriteFile(n.path("hierarchies"), []byte(strings.Join(world.Hierarchies(), "\n")+"\n"), 0o644),
		c.authority.writePair(n.path(""), "kubelet", user),
		c.authority.writeKubeconfig(n.path("kubelet.kubeconfig"), user),
		c.authority.writeKubeconfig(n.path("kube-proxy.kubeconfig"), subject{Name: "system:kube-proxy"}))
}

// fill is an embedded file with values in place of its templates.
func fill(name string, values any) ([]byte, error) {
	text, err := files.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(name, ".sh") {
		return text, nil
	}
	t, err := template.New(name).Option("missingkey=error").Parse(string(text))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, values); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func (n *Node) path(file string) string { return filepath.Join(dir, n.Name, file) }

// start switches the node on: its files are those it had when it went off.
func (n *Node) start() error {
	group, err := world.ControlGroup()
	if err != nil {
		return err
	}
	// Control groups outlive their processes, and those of dead containers
	// would make the kubelet wait for each.
	for _, root := range world.Hierarchies() {
		if err := world.RemoveControlGroup(filepath.Join(root, group, n.Name)); err != nil {
			return err
		}
	}
	cmd := exec.Command("bash", n.path("init.sh"))
	cmd.Env = append(os.Environ(), "NODE="+n.Name, "DIR="+n.path(""), "BINARIES="+n.cluster.binaries, "CGROUP="+group,
		"ADDRESSES="+n.Address4+","+n.Address6, "POD_CIDRS="+podsDual)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	connected, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if n.init, err = world.Launch(n.Name, n.path("init.log"), cmd); err != nil {
		return err
	}
	if err := connectNode(n.Name, n.init.PID()); err != nil {
		return err
	}
	if _, err := io.WriteString(connected, "\n"); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	return connected.Close()
}

// Boot switches the node on again and waits until it is ready.
func (n *Node) Boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	now := time.Now()
	if err := n.start(); err != nil {
		return err
	}
	return n.awaitReady(ctx, now)
}

// PowerCut ends everything on the node at once: no program of it does another
// step, no connection of it is closed.
func (n *Node) PowerCut() error {
	if n.init == nil {
		return nil
	}
	return n.init.Kill()
}

// Command is a program to run on the node, as its root.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(n.init.PID()), "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--", name}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
}

// Run runs a program on the node and returns its standard output.
func (n *Node) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := n.Command(ctx, name, args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), fmt.Errorf("%s on %s: %w: %s", name, n.Name, err, exit.Stderr)
	}
	return string(out), err
}

func (n *Node) awaitContainerd(ctx context.Context) error {
	return world.Poll(ctx, func() error {
		_, err := n.Run(ctx, "ctr", "version")
		return err
	})
}

// awaitReady waits for kubelet and kube-proxy, which the kubelet's word does
// not cover, to have said so since a time.
func (n *Node) awaitReady(ctx context.Context, since time.Time) error {
	err := Await(ctx, n.cluster, "", n.Name, func(node *corev1.Node) error { return nodeReady(node, since) })
	if err != nil {
		return err
	}
	err = world.Poll(ctx, func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Address4+":10256/healthz", nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for kube-proxy on %s: %w", n.Name, err)
	}
	return nil
}
