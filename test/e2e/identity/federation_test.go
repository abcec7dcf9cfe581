package identity

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/spire"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/servers"
	"github.com/tacit-mesh/tacit/xds/model"
)

// friendMayCall names a client of another trust domain, and those of the own
// one.
const friendMayCall = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: friends, namespace: mesh}
spec:
  selector: {matchLabels: {app: server}}
  rules: [{from: [{source: {principals: ["friend.test/ns/shop/sa/friend", "cluster.local/ns/mesh/sa/client"]}}]}]
`

// Clients of a SPIRE server that the mesh's own one federates with are known, if
// the entry of the pod that they call says so, and let in if a policy names
// them. While SPIRE is away that stays so, for new proxies, too.
func federation(t *testing.T, m *e2e.Mesh, home *servers.SPIRE) {
	abroad := servers.StartSPIRE(t, servers.SPIREConfig{TrustDomain: "friend.test", Life: time.Hour, UID: os.Getuid()})
	abroad.Delegate()
	abroad.FederateWith(home)
	friend, other := abroadAs(t, abroad, "friend"), abroadAs(t, abroad, "other")
	if status, err := ask(m, friend); err == nil {
		t.Errorf("before anybody federates with it, a friend is answered %d", status)
	}
	home.FederateWith(abroad)
	home.Entry("/ns/mesh/sa/server", []string{"k8s:pod-name:server"}, "-federatesWith", "spiffe://friend.test")
	answered := func(who *identity.Material, want int) {
		t.Helper()
		m.Eventually(fmt.Sprintf("%s is answered", who.Identity()), func() error {
			got, err := ask(m, who)
			if err == nil && got != want {
				err = fmt.Errorf("%d, want %d", got, want)
			}
			return err
		})
	}
	answered(friend, http.StatusUnauthorized)
	m.MustApply(friendMayCall)
	answered(friend, http.StatusOK)
	answered(other, http.StatusUnauthorized)

	home.KillAgent()
	for _, node := range m.Nodes() {
		if err := errors.Join(node.Proxy().Kill(), node.StartProxy(m.Context())); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Call("mesh/client", server); err != nil {
		t.Errorf("with new proxies, while SPIRE is away: %v", err)
	}
	answered(friend, http.StatusOK)
	answered(other, http.StatusUnauthorized)
}

// abroadAs is the certificate of an account of another trust domain, with the
// bundle of the mesh's.
func abroadAs(t *testing.T, s *servers.SPIRE, account string) *identity.Material {
	t.Helper()
	s.Entry("/ns/shop/sa/"+account, []string{"k8s:ns:shop", "k8s:sa:" + account}, "-federatesWith", "spiffe://cluster.local")
	source, err := spire.New(spire.Config{Socket: s.AdminSocket()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*e2e.Patience)
	pod := identity.Pod{Identity: model.Identity{TrustDomain: s.TrustDomain, Namespace: "shop", ServiceAccount: account}}
	subject := identity.Subject{Identity: pod.Identity, Selectors: spire.Selectors(pod)}
	var whole *identity.Material
	var failure error
	_ = source.Subscribe(ctx, subject, func(m *identity.Material) { // until then
		if m.Federated["cluster.local"] != nil {
			whole = m
			cancel()
		}
	}, func(err error) { failure = err })
	cancel()
	if err := source.Close(); err != nil {
		t.Error(err)
	}
	if whole == nil {
		t.Fatalf("no certificate for %s: %v", account, failure)
	}
	return whole
}

// ask has a client from outside of the mesh call the server by its own
// certificate, and returns the status of the answer; of a good one also the
// server's first line has come.
func ask(m *e2e.Mesh, own *identity.Material) (status int, err error) {
	tcp, err := m.Pod("outside/plain").Dial(m.Context(), serverTunnels)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tcp.Close() }()
	if err := tcp.SetDeadline(time.Now().Add(e2e.Patience)); err != nil {
		return 0, err
	}
	c := tls.Client(tcp, identity.ClientConfig(own, []string{"spiffe://cluster.local/ns/mesh/sa/server"}))
	if err := c.HandshakeContext(m.Context()); err != nil {
		return 0, err
	}
	h2 := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
	body, end := io.Pipe()
	defer func() { _ = end.Close() }()
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: server}, Host: server, Header: http.Header{}, Body: body}
	response, err := h2.RoundTrip(request.WithContext(m.Context()))
	if err != nil {
		return 0, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode == http.StatusOK {
		_, err = bufio.NewReader(response.Body).ReadString('\n')
	}
	return response.StatusCode, err
}
