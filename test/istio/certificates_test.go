package istio

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/test/servers"
	"github.com/tacit-mesh/tacit/xds/model"
)

var (
	clientID = model.Identity{TrustDomain: "cluster.local", Namespace: "mesh", ServiceAccount: "client"}
	serverID = model.Identity{TrustDomain: "cluster.local", Namespace: "mesh", ServiceAccount: "server"}
)

// life is that of certificates that are seen to be renewed.
const life = 30 * time.Second

// certificates asks as the proxy of node a, where the client runs.
func (m *mesh) certificates() {
	m.t.Helper()
	token := m.proxyToken("a")
	whole := m.subscribe("whole", token, servers.IstiodCluster, clientID, life)
	c := whole.update()
	if err := c.Check(time.Now()); err != nil {
		m.t.Error(err)
	}
	if left := time.Until(c.NotAfter()); c.Identity() != clientID || left > time.Minute {
		m.t.Errorf("a certificate of %v for %v", c.Identity(), left)
	}
	text, err := os.ReadFile(m.roots())
	m.must(err)
	block, _ := pem.Decode(text)
	if root := c.Authorities[0]; block == nil || !bytes.Equal(root.Raw, block.Bytes) || root.PublicKeyAlgorithm != x509.RSA {
		m.t.Errorf("its root is %v", root.Subject)
	}

	for name, refused := range map[string]struct {
		token, cluster string
		of             model.Identity
	}{
		"a pod of another node":    {token, servers.IstiodCluster, serverID},
		"a pod that is nowhere":    {token, servers.IstiodCluster, model.Identity{TrustDomain: "cluster.local", Namespace: "mesh", ServiceAccount: "nobody"}},
		"another cluster":          {token, "elsewhere", clientID},
		"an account not trusted":   {m.token("mesh", "client", "istio-ca", "client"), servers.IstiodCluster, serverID},
		"a token of nobody":        {"nobody", servers.IstiodCluster, clientID},
		"a token for someone else": {m.token(system, account, "tacitd", account+"-a"), servers.IstiodCluster, clientID},
		"a token of no pod":        {m.token(system, account, "istio-ca", ""), servers.IstiodCluster, clientID},
	} {
		s := m.subscribe(strings.ReplaceAll(name, " ", "-"), refused.token, refused.cluster, refused.of, life)
		if err := s.failure(); !strings.Contains(err.Error(), "Unauthenticated") || !strings.Contains(err.Error(), refused.of.String()) ||
			strings.Contains(err.Error(), refused.token) {
			m.t.Errorf("%s: refused by %v", name, err)
		}
		s.stop()
		if len(s.updates) > 0 {
			m.t.Errorf("%s has got a certificate", name)
		}
	}

	// The file is read again for each certificate.
	m.tokenFile("whole", "nobody")
	if err := whole.failure(); !strings.Contains(err.Error(), "check the token file") {
		m.t.Errorf("with a token that has ended: %v", err)
	}
	for len(whole.updates) > 0 { // from before
		c = <-whole.updates
	}
	m.tokenFile("whole", token)
	if next := whole.update(); next.Leaf.Equal(c.Leaf) || next.Identity() != clientID {
		m.t.Errorf("the next certificate is one of %v", next.Identity())
	}
	whole.stop()
}

// subscriber is a running subscription to a certificate.
type subscriber struct {
	m       *mesh
	updates chan *identity.Material
	fails   chan error
	stop    func()
}

func (m *mesh) subscribe(name, token, cluster string, id model.Identity, life time.Duration) *subscriber {
	m.t.Helper()
	source, err := caclient.New(caclient.Config{
		Address: m.istiod.Address, ServerName: servers.IstiodName, ClusterID: cluster,
		RootsFile: m.roots(), TokenFile: m.tokenFile(name, token), Lifetime: life,
	})
	m.must(err)
	s := &subscriber{m: m, updates: make(chan *identity.Material, 1000), fails: make(chan error, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		err := source.Subscribe(ctx, identity.Subject{Identity: id}, func(c *identity.Material) { s.updates <- c }, func(err error) { s.fails <- err })
		if !errors.Is(err, context.Canceled) {
			m.t.Errorf("Subscribe = %v, want the context's error", err)
		}
	})
	s.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		if err := source.Close(); err != nil {
			m.t.Error(err)
		}
	})
	m.t.Cleanup(s.stop)
	return s
}

func (s *subscriber) update() *identity.Material {
	s.m.t.Helper()
	select {
	case c := <-s.updates:
		return c
	case <-time.After(patience):
		s.m.t.Fatalf("no certificate; %d failures", len(s.fails))
		return nil
	}
}

func (s *subscriber) failure() error {
	s.m.t.Helper()
	select {
	case err := <-s.fails:
		return err
	case <-time.After(patience):
		s.m.t.Fatal("no failure")
		return nil
	}
}
