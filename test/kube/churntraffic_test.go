package kube

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/test/kube/load"
)

const (
	tunnelPort      = "15008"
	wavePrefix      = "10.250.0.0/16"
	callerNamespace = "churn-real"
	// connectionsAPod are all in one direction: to it, if its number is odd.
	connectionsAPod = 4
)

// churnTraffic stands in for the pods that no node runs: at their addresses and
// with their certificates it takes connections from pods that a node runs, and
// makes some to them.
type churnTraffic struct {
	environment
	certificates [accounts]tls.Certificate
	roots        *x509.CertPool
	wave         atomic.Int64
	servers      []string // addresses of pods
}

// newChurnTraffic makes the pods at the other ends. It is nil where the cluster
// is another's: its nodes have no way to this machine.
func (e environment) newChurnTraffic() *churnTraffic {
	e.t.Helper()
	if !e.Ours() {
		return nil
	}
	c := &churnTraffic{environment: e}
	c.certify()
	c.takeAddresses()
	c.listen()
	e.newNamespace(callerNamespace, inMesh())
	e.serve(callerNamespace, "server")
	e.workload(callerNamespace, "caller", nil, "")
	e.must(e.AwaitDeployment(e.ctx, callerNamespace, "caller"))
	for _, pod := range e.podNames(callerNamespace, "app=server") {
		addresses, err := e.PodAddresses(e.ctx, callerNamespace, pod)
		e.must(err)
		c.servers = append(c.servers, addresses[0])
	}
	e.awaitCapture(callerNamespace, true)
	return c
}

// certify makes a certificate for each account, as tacitd would.
func (c *churnTraffic) certify() {
	c.t.Helper()
	secret, err := c.Client.CoreV1().Secrets(Namespace).Get(c.ctx, ca.Secret, metav1.GetOptions{})
	c.must(err)
	pair, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
	c.must(err)
	signer := authority{cert: pair.Leaf, key: pair.PrivateKey.(crypto.Signer)}
	c.roots = x509.NewCertPool()
	c.roots.AddCert(pair.Leaf)
	for i := range accounts {
		id := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/churn/sa/" + accountName(i)}
		certificate, key, err := signer.issue(subject{Name: accountName(i), Identity: id})
		c.must(err)
		c.certificates[i], err = tls.X509KeyPair(certificate, key)
		c.must(err)
	}
}

// takeAddresses makes the pods' addresses this program's, until the test ends.
// Nodes send there what they have no route for.
func (c *churnTraffic) takeAddresses() {
	c.t.Helper()
	lo, err := netlink.LinkByName("lo")
	c.must(err)
	prefix, err := netlink.ParseIPNet(wavePrefix)
	c.must(err)
	route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: prefix, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
	c.must(netlink.RouteAdd(route))
	c.atEnd(func(environment) error { return netlink.RouteDel(route) })
}

// listen answers CONNECT at each address, as the pod that has it now, with what
// comes through the tunnel.
func (c *churnTraffic) listen() {
	c.t.Helper()
	l, err := net.Listen("tcp4", ":"+tunnelPort)
	c.must(err)
	server := &http.Server{
		Handler:           http.HandlerFunc(sendBack),
		ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: c.roots,
			GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				address, err := netip.ParseAddrPort(hello.Conn.LocalAddr().String())
				if err != nil {
					return nil, err
				}
				a := address.Addr().As4()
				return c.certificate(int(a[2])*200 + int(a[3]) - 1), nil
			},
		},
	}
	var group errgroup.Group
	group.Go(func() error { return server.ServeTLS(l, "", "") })
	c.atEnd(func(environment) error {
		err := server.Close()
		if served := group.Wait(); !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	})
}

// certificate is that of a pod of the wave that there is.
func (c *churnTraffic) certificate(pod int) *tls.Certificate {
	return &c.certificates[waveAccount(int(c.wave.Load()), pod)]
}

func sendBack(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
		return
	}
	controller := http.NewResponseController(w)
	_ = controller.Flush() // a caller that has gone sees nothing of what follows
	buffer := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buffer)
		if _, failed := w.Write(buffer[:n]); failed != nil || controller.Flush() != nil {
			panic(http.ErrAbortHandler)
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// renewCallers has the real pods that connect made anew.
func (c *churnTraffic) renewCallers() {
	if c == nil {
		return
	}
	c.t.Helper()
	soon := int64(1)
	for _, pod := range c.podNames(callerNamespace, "app=caller") {
		c.must(c.Client.CoreV1().Pods(callerNamespace).Delete(c.ctx, pod, metav1.DeleteOptions{GracePeriodSeconds: &soon}))
	}
}

// exchange has each pod of a wave send and get messages over connections, at the
// other end of which is a real pod.
func (c *churnTraffic) exchange(wave int) {
	if c == nil {
		return
	}
	c.t.Helper()
	c.wave.Store(int64(wave))
	c.must(c.AwaitDeployment(c.ctx, callerNamespace, "caller"))
	callers := c.podNames(callerNamespace, "app=caller")
	group, ctx := errgroup.WithContext(c.ctx)
	for i, caller := range callers {
		command := []string{"/app", "exchange", fmt.Sprintf("--times=%d", connectionsAPod)}
		for pod := 1 + 2*i; pod < podsAWave; pod += 2 * len(callers) {
			command = append(command, waveAddress(pod))
		}
		group.Go(func() error {
			if err := c.AwaitPod(ctx, callerNamespace, caller); err != nil {
				return err
			}
			_, err := c.Exec(ctx, callerNamespace, caller, command...)
			return err
		})
	}
	inbound, inboundCtx := errgroup.WithContext(ctx)
	inbound.SetLimit(8)
	for pod := 0; pod < podsAWave; pod += 2 {
		inbound.Go(func() error { return c.call(inboundCtx, pod, c.servers[pod/2%len(c.servers)]) })
	}
	if err := errors.Join(inbound.Wait(), group.Wait()); err != nil {
		c.t.Fatalf("wave %d: %v", wave, err)
	}
}

// call sends messages from a pod to a server, through a tunnel of its own, and
// expects them back.
func (c *churnTraffic) call(ctx context.Context, pod int, server string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	from := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(waveAddress(pod)), 0))
	dialer := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: from}, Config: c.peerConfig(pod)}
	tunnel := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, net.JoinHostPort(server, tunnelPort))
	}}
	defer tunnel.CloseIdleConnections()
	to := net.JoinHostPort(server, strconv.Itoa(load.EchoPort))
	for range connectionsAPod {
		if err := through(ctx, tunnel, to); err != nil {
			return fmt.Errorf("from %s to %s: %w", from, to, err)
		}
	}
	return nil
}

// through sends a message over a connection through a tunnel, and expects it
// back.
func through(ctx context.Context, tunnel http.RoundTripper, to string) error {
	message := bytes.Repeat([]byte(to), 100)
	request, err := http.NewRequestWithContext(ctx, http.MethodConnect, "https://"+to, io.NopCloser(bytes.NewReader(message)))
	if err != nil {
		return err
	}
	response, err := tunnel.RoundTrip(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || !bytes.Equal(got, message) {
		return fmt.Errorf("%s, and %d bytes came back for %d", response.Status, len(got), len(message))
	}
	return nil
}

// peerConfig is that of a pod's connections to servers: these have identities
// and no names.
func (c *churnTraffic) peerConfig(pod int) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*c.certificate(pod)},
		InsecureSkipVerify: true, // verified below
		VerifyConnection: func(state tls.ConnectionState) error {
			intermediates := x509.NewCertPool()
			for _, certificate := range state.PeerCertificates[1:] {
				intermediates.AddCert(certificate)
			}
			leaf := state.PeerCertificates[0]
			if want := "spiffe://cluster.local/ns/" + callerNamespace + "/sa/server"; len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
				return fmt.Errorf("the server is %v, want %s", leaf.URIs, want)
			}
			_, err := leaf.Verify(x509.VerifyOptions{Roots: c.roots, Intermediates: intermediates})
			return err
		},
	}
}
