package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/tacit-mesh/tacit/test/world"
)

// The control plane's parts.
const (
	etcd              = "etcd"
	apiServer         = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"
)

const serverURL = "https://" + gateway4 + ":" + serverPort

// startControlPlane returns when the API server is ready.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := c.writeKeys(); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	for _, name := range []string{etcd, apiServer} {
		if err := c.startControl(name); err != nil {
			return err
		}
	}
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.awaitServer(ctx); err != nil {
		return err
	}
	return errors.Join(c.startControl(controllerManager), c.startControl(scheduler))
}

func (c *Cluster) writeKeys() error {
	var err error
	if c.authority, err = newAuthority(); err != nil {
		return err
	}
	a := c.authority
	addresses := make([]netip.Addr, 0, 5)
	for _, text := range []string{gateway4, gateway6, "127.0.0.1", "10.96.0.1", "fd00:96::1"} {
		addresses = append(addresses, netip.MustParseAddr(text))
	}
	return errors.Join(
		os.WriteFile(inDir("ca.crt"), a.pem(), 0o600),
		a.writePair(dir, "apiserver", subject{Name: "kube-apiserver", Addresses: addresses,
			DNSNames: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}}),
		a.writePair(dir, "kubelet-client", subject{Name: "kube-apiserver", Organization: []string{"system:masters"}}),
		a.writePair(dir, "service-accounts", subject{Name: "service-accounts"}),
		a.writeKubeconfig(c.Kubeconfig, subject{Name: "admin", Organization: []string{"system:masters"}}),
		a.writeKubeconfig(inDir(controllerManager), subject{Name: "system:kube-controller-manager"}),
		a.writeKubeconfig(inDir(scheduler), subject{Name: "system:kube-scheduler"}))
}

func inDir(name string) string { return filepath.Join(dir, name) }

// controlArguments are those of a part of the control plane.
func controlArguments(name string) []string {
	switch name {
	case etcd:
		const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
		return []string{"--data-dir", inDir(etcd), "--unsafe-no-fsync", "--log-level", "warn",
			"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer}
	case apiServer:
		return []string{
			"--etcd-servers=http://127.0.0.1:2379", "--bind-address=" + gateway4, "--advertise-address=" + gateway4, "--secure-port=" + serverPort,
			"--service-cluster-ip-range=" + servicesDual,
			"--tls-cert-file=" + inDir("apiserver.crt"), "--tls-private-key-file=" + inDir("apiserver.key"), "--client-ca-file=" + inDir("ca.crt"),
			"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + inDir("service-accounts.crt"),
			"--service-account-signing-key-file=" + inDir("service-accounts.key"),
			"--kubelet-certificate-authority=" + inDir("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
			"--kubelet-client-certificate=" + inDir("kubelet-client.crt"), "--kubelet-client-key=" + inDir("kubelet-client.key"),
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			// It is on no node, so kube-proxy does not help it to reach webhooks.
			"--enable-aggregator-routing=true", "--profiling=false",
		}
	case controllerManager:
		return []string{"--kubeconfig=" + inDir(controllerManager), "--service-account-private-key-file=" + inDir("service-accounts.key"),
			"--root-ca-file=" + inDir("ca.crt"), "--use-service-account-credentials=true", "--leader-elect=false", "--secure-port=0",
			// A node that is gone for a moment is back with its pods, as after a
			// power cut; how soon that is noticed is set here.
			"--node-monitor-period=1s", "--node-monitor-grace-period=20s"}
	default:
		return []string{"--kubeconfig=" + inDir(scheduler), "--leader-elect=false", "--secure-port=0"}
	}
}

func (c *Cluster) startControl(name string) error {
	program := filepath.Join(c.binaries, "kubernetes")
	cmd := exec.Command(program, append([]string{name}, controlArguments(name)...)...)
	started, err := world.Launch(name, inDir(name+".log"), cmd)
	if err != nil {
		return err
	}
	c.control[name] = started
	return nil
}

// awaitServer polls: an API server that is not there yet has no event.
func (c *Cluster) awaitServer(ctx context.Context) error {
	err := world.Poll(ctx, func() error {
		select {
		case <-c.control[apiServer].Ended():
			return c.control[apiServer].Wait(ctx)
		default:
		}
		_, err := c.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for the API server: %w", err)
	}
	return nil
}

// StopServer takes the API server away: connections to it are cut.
func (c *Cluster) StopServer() error { return c.control[apiServer].Kill() }

// StartServer brings it back and waits until it is ready.
func (c *Cluster) StartServer(ctx context.Context) error {
	if err := c.startControl(apiServer); err != nil {
		return err
	}
	return c.awaitServer(ctx)
}
