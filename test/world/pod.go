package world

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
)

// Pod is a network namespace with a pod's addresses.
type Pod struct {
	Key       string // "NAMESPACE/NAME"
	Node      *Node
	Addresses []netip.Addr

	object *corev1.Pod
	netns  *namespace // the node's, for a pod on the host's network
	link   string     // the node's end of its veth pair; empty for such a pod
	dir    string
	apps   []*Program
}

// addPod makes the namespace of a pod, links and routes included.
func (w *World) addPod(key string, object *corev1.Pod) (*Pod, error) {
	addresses, err := podAddresses(object)
	if err != nil {
		return nil, err
	}
	name := object.Namespace + "_" + object.Name
	pod := &Pod{Key: key, Node: w.nodes[object.Spec.NodeName], Addresses: addresses, object: object, dir: filepath.Join(w.dir, "pods", name)}
	if err := os.MkdirAll(pod.dir, 0o755); err != nil {
		return nil, err
	}
	if object.Spec.HostNetwork {
		pod.netns, pod.Addresses = pod.Node.netns, pod.Node.Addresses
		return pod, nil
	}
	if pod.netns, err = newNamespace(filepath.Join(w.NetnsDir(), name)); err != nil {
		return nil, err
	}
	w.links++
	pod.link = fmt.Sprintf("pod%d", w.links)
	if err := pod.Node.netns.Do(func() error { return linkPod(pod.link, pod) }); err != nil {
		return nil, errors.Join(err, pod.close())
	}
	if err := w.routeEverywhere(pod); err != nil {
		return nil, errors.Join(err, pod.close())
	}
	return pod, nil
}

func podAddresses(object *corev1.Pod) ([]netip.Addr, error) {
	if object.Spec.HostNetwork {
		return nil, nil
	}
	texts := []string{object.Status.PodIP}
	if len(object.Status.PodIPs) > 0 {
		texts = nil
		for _, ip := range object.Status.PodIPs {
			texts = append(texts, ip.IP)
		}
	}
	var out []netip.Addr
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("status.podIPs: %w", err)
		}
		out = append(out, a)
	}
	return out, nil
}

// routeToPod says, in the current namespace, which node the pod is behind.
func routeToPod(pod *Pod, dev string) error {
	if pod.object.Spec.HostNetwork {
		return nil
	}
	for _, a := range pod.Addresses {
		if err := addRoute(route{to: host(a), via: pod.Node.address(a), dev: dev}); err != nil {
			return err
		}
	}
	return nil
}

// routeEverywhere tells the backbone and the other nodes where a pod is.
func (w *World) routeEverywhere(pod *Pod) error {
	for _, node := range w.nodes {
		if node != pod.Node {
			if err := node.netns.Do(func() error { return routeToPod(pod, "eth0") }); err != nil {
				return err
			}
		}
	}
	return w.backbone.Do(func() error { return routeToPod(pod, bridgeName) })
}

// removePod ends the pod's programs and lets its namespace go.
func (w *World) removePod(pod *Pod) error {
	stopAll(pod.apps)
	var err error
	if pod.link != "" {
		// Its address may belong to another pod by now: routes go first.
		drop := func() error {
			for _, a := range pod.Addresses {
				if err := delRoute(host(a)); err != nil {
					return err
				}
			}
			return nil
		}
		err = w.backbone.Do(drop)
		for _, node := range w.nodes {
			err = errors.Join(err, node.netns.Do(drop))
		}
	}
	return errors.Join(err, pod.close())
}

// close removes the pod's end of the node and its namespace's file. The
// namespace itself ends when nobody uses it any more.
func (p *Pod) close() error {
	if p.netns == nil || p.netns == p.Node.netns {
		return nil
	}
	err := p.Node.netns.Do(func() error {
		link, err := netlink.LinkByName(p.link)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	return errors.Join(err, p.netns.close())
}

// sameLinks reports whether the pod can stay as it is for a new manifest.
func (p *Pod) sameLinks(now *corev1.Pod) bool {
	old := p.object
	addresses, err := podAddresses(now)
	return err == nil && old.UID == now.UID && old.Spec.NodeName == now.Spec.NodeName &&
		old.Spec.HostNetwork == now.Spec.HostNetwork && (now.Spec.HostNetwork || slices.Equal(addresses, p.Addresses))
}

// Address is the pod's first address, which manifests list first.
func (p *Pod) Address() netip.Addr { return p.Addresses[0] }

// ServiceAccount is the pod's account.
func (p *Pod) ServiceAccount() string {
	return cmp.Or(p.object.Spec.ServiceAccountName, "default")
}

// NetnsPath is the file of the pod's network namespace.
func (p *Pod) NetnsPath() string { return p.netns.path }

// Do runs fn on a thread inside the pod's network namespace. Sockets that fn
// itself makes stay in it; goroutines that fn starts do not run in it.
func (p *Pod) Do(fn func() error) error { return p.netns.Do(fn) }

// Dial connects from inside the pod. The address must be numeric.
func (p *Pod) Dial(ctx context.Context, address string) (*net.TCPConn, error) {
	return dialIn(ctx, p.netns, address)
}

// Listen listens inside the pod. The address must be numeric or ":PORT".
func (p *Pod) Listen(address string) (net.Listener, error) {
	var l net.Listener
	err := p.netns.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

func dialIn(ctx context.Context, n *namespace, address string) (*net.TCPConn, error) {
	// A name would be resolved on another thread, outside of the namespace.
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", address)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// Command is a program to run in the pod, as root, with the pod's network,
// host name and /etc/hosts. Its environment is the caller's and cannot be
// replaced in the returned Cmd; use env(1).
func (p *Pod) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return p.spec().command(ctx, name, args)
}

func (p *Pod) spec() execSpec {
	return execSpec{Netns: p.netns.path, CPUs: p.Node.cpus, Hostname: path.Base(p.Key), Mounts: podMounts(p.dir)}
}

// podMounts are the files that every program of a pod sees as its own.
func podMounts(dir string) []mount {
	return []mount{{filepath.Join(dir, "hosts"), "/etc/hosts"}, {filepath.Join(dir, "resolv.conf"), "/etc/resolv.conf"}}
}

// writeHosts gives the services' names to the pod's programs. The file is
// written in place: running programs have it mounted.
func (p *Pod) writeHosts(services []*corev1.Service, pods []*Pod) error {
	var b bytes.Buffer
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, a := range p.Addresses {
		fmt.Fprintf(&b, "%s %s\n", a, p.object.Name)
	}
	for _, s := range services {
		full := s.Name + "." + s.Namespace + ".svc"
		names := []string{full + ".cluster.local", full, s.Name + "." + s.Namespace}
		if s.Namespace == p.object.Namespace {
			names = append(names, s.Name)
		}
		for _, ip := range addressesOf(s, pods) {
			fmt.Fprintf(&b, "%s %s\n", ip, strings.Join(names, " "))
		}
	}
	files := podMounts(p.dir)
	return errors.Join(os.WriteFile(files[0].From, b.Bytes(), 0o644), os.WriteFile(files[1].From, nil, 0o644))
}
