package spire_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/identity/spire"
	"github.com/tacit-mesh/tacit/test/servers"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 40 * time.Second

// webPod runs on node-1; its SPIFFE id is that of its service account.
var webPod = identity.Pod{
	Identity: model.Identity{TrustDomain: "td.test", Namespace: "shop", ServiceAccount: "web"},
	UID:      "1234", Name: "web-1", Node: "node-1", Labels: map[string]string{"app": "web", "example.com/tier": "front"},
}

// webComposition is a pod whose second container has not started.
var webComposition = model.Composition{
	Containers: []model.Container{
		{Name: "setup", Init: true, Image: "docker.io/library/setup:1", ImageID: "docker.io/library/setup@sha256:01", Started: true},
		{Name: "web", Image: "docker.io/library/web:2", ImageID: "docker.io/library/web@sha256:02", Started: true},
		{Name: "late", Image: "docker.io/library/late:3"},
	},
	Owners: []model.Owner{{Kind: "ReplicaSet", Name: "web-5d", UID: "5678"}},
}

var webID = "/ns/shop/sa/web"

// subscriber is a running subscription.
type subscriber struct {
	t       *testing.T
	updates chan *identity.Material
	fails   chan error
}

func subscribe(t *testing.T, source *spire.Source, pod identity.Pod) subscriber {
	t.Helper()
	s := subscriber{t, make(chan *identity.Material, 1000), make(chan error, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		subject := identity.Subject{Identity: pod.Identity, Selectors: spire.Selectors(pod)}
		err := source.Subscribe(ctx, subject, func(m *identity.Material) { s.updates <- m }, func(err error) { s.fails <- err })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Subscribe = %v, want the context's error", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return s
}

func newSource(t *testing.T, config spire.Config) *spire.Source {
	t.Helper()
	source, err := spire.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := source.Close(); err != nil {
			t.Error(err)
		}
	})
	return source
}

func (s subscriber) update() *identity.Material {
	s.t.Helper()
	select {
	case m := <-s.updates:
		return m
	case <-time.After(patience):
		all := s.drain()
		s.t.Fatalf("no certificate; %d failures, the last: %v", len(all), all[max(0, len(all)-3):])
		return nil
	}
}

func (s subscriber) drain() (all []error) {
	for len(s.fails) > 0 {
		all = append(all, <-s.fails)
	}
	return all
}

// failure waits for one that says all this.
func (s subscriber) failure(words ...string) {
	s.t.Helper()
	var last error
	for end := time.After(patience); ; {
		select {
		case last = <-s.fails:
			if says(last, words) {
				return
			}
		case <-end:
			s.t.Fatalf("no failure says %q; the last: %v", words, last)
		}
	}
}

func says(err error, words []string) bool {
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			return false
		}
	}
	return true
}

// renewed waits for another certificate than that of m.
func (s subscriber) renewed(m *identity.Material) *identity.Material {
	s.t.Helper()
	for {
		if next := s.update(); !next.Leaf.Equal(m.Leaf) {
			return next
		}
	}
}

func startSPIRE(t *testing.T, life time.Duration) (*servers.SPIRE, spire.Config) {
	t.Helper()
	s := servers.StartSPIRE(t, servers.SPIREConfig{TrustDomain: "td.test", Life: life, UID: os.Getuid()})
	return s, spire.Config{Socket: s.AdminSocket(), Timeout: 5 * time.Second}
}

func TestCertificates(t *testing.T) {
	s, config := startSPIRE(t, time.Hour)
	source := newSource(t, config)

	t.Run("not a delegate", func(t *testing.T) {
		subscribe(t, source, webPod).failure("PermissionDenied", "authorized_delegates", webPod.Identity.String(), config.Socket)
	})
	s.Delegate()
	late := subscribe(t, source, webPod) // before there is an entry

	t.Run("no entry", func(t *testing.T) {
		late.failure("no entry is registered", "k8s:ns:shop", "k8s:pod-label:app:web", webPod.Identity.String())
	})
	t.Run("an entry for another identity", func(t *testing.T) {
		entry := s.Entry("/ns/shop/sa/other", []string{"k8s:sa:web"})
		late.failure(`"spiffe://td.test/ns/shop/sa/other"`, "not for the pod's own identity")
		s.Delete(entry)
	})
	t.Run("an entry that comes late", func(t *testing.T) {
		entry := s.Entry(webID, []string{"k8s:ns:shop", "k8s:sa:web"})
		m := late.update()
		if err := m.Check(time.Now()); err != nil {
			t.Error(err)
		}
		if m.Identity() != webPod.Identity || len(m.Authorities) == 0 || len(m.Federated) != 0 {
			t.Errorf("identity %v, %d roots, federated %v", m.Identity(), len(m.Authorities), m.Federated)
		}
		s.Delete(entry)
		late.failure("no entry is registered", "the one there is serves for another")
	})
	t.Run("an entry for a label", func(t *testing.T) {
		entry := s.Entry(webID, []string{"k8s:pod-label:example.com/tier:front"})
		if m := subscribe(t, source, webPod).update(); m.Identity() != webPod.Identity {
			t.Errorf("identity %v", m.Identity())
		}
		other := webPod
		other.Labels = map[string]string{"app": "web", "example.com/tier": "back"}
		without := subscribe(t, source, other)
		without.failure("no entry is registered", "tier:back")
		if len(without.updates) != 0 {
			t.Error("a pod without the label has got a certificate")
		}
		s.Delete(entry)
	})
	t.Run("an entry for an image, a container, an owner", func(t *testing.T) {
		other := webPod
		other.Composition = model.Composition{
			Containers: []model.Container{{Name: "other", Image: "docker.io/library/other:1", Started: true}, {Name: "web", Image: "docker.io/library/web@sha256:02"}},
			Owners:     []model.Owner{{Kind: "ReplicaSet", Name: "web-5d", UID: "another"}},
		}
		pod := webPod
		pod.Composition = webComposition
		var made []string
		var with, without []subscriber
		for account, selectors := range map[string][]string{
			"image":     {"k8s:ns:shop", "k8s:container-image:docker.io/library/web@sha256:02"},
			"container": {"k8s:ns:shop", "k8s:container-name:web"},
			"owner":     {"k8s:pod-owner:ReplicaSet:web-5d", "k8s:pod-owner-uid:ReplicaSet:5678"},
		} {
			made = append(made, s.Entry("/ns/shop/sa/"+account, selectors))
			pod.Identity.ServiceAccount = account
			other.Identity.ServiceAccount = account
			with, without = append(with, subscribe(t, source, pod)), append(without, subscribe(t, source, other))
		}
		for _, s := range with {
			s.update()
		}
		for _, s := range without { // by now SPIRE knows all entries
			s.failure("no entry is registered")
			if len(s.updates) != 0 {
				t.Errorf("a pod of other containers and owners is given %s", s.update().Identity())
			}
		}
		for _, entry := range made {
			s.Delete(entry)
		}
	})
	t.Run("every selector", func(t *testing.T) {
		pod := webPod
		pod.Identity.ServiceAccount, pod.Composition = "every", webComposition
		var every []string
		for line := range strings.SplitSeq(spire.Selectors(pod), "\n") {
			every = append(every, "k8s:"+line)
		}
		s.Entry("/ns/shop/sa/every", every)
		subscribe(t, source, pod).update()
	})
	t.Run("federated bundles", func(t *testing.T) {
		ca, unnamed := identitytest.NewCA(t), identitytest.NewCA(t)
		s.Federate("friend.test", ca.Root)
		s.Federate("unnamed.test", unnamed.Root)
		s.Entry(webID, []string{"k8s:sa:web"}, "-federatesWith", "spiffe://friend.test")
		sub := subscribe(t, source, webPod)
		for {
			m := sub.update()
			friend := m.Federated["friend.test"]
			if friend == nil {
				continue // the bundle is on its way
			}
			if len(m.Federated) != 1 || !friend.Authorities[0].Equal(ca.Root) {
				t.Errorf("federated: %v", m.Federated)
			}
			break
		}
	})
}

// In a cluster SPIRE's agent shows by its pod's token which node it is on, and
// entries are for the pods of nodes. It does so again when it comes back.
func TestNodesOfKubernetes(t *testing.T) {
	s := servers.StartSPIRE(t, servers.SPIREConfig{
		TrustDomain: "td.test", Life: time.Hour, UID: os.Getuid(), Kubernetes: servers.StartKubernetes(t, "10.96.0.0/16"),
	})
	s.Delegate()
	s.Entry(webID, []string{"k8s:ns:shop", "k8s:sa:web", "k8s:node-name:" + webPod.Node})
	source := newSource(t, spire.Config{Socket: s.AdminSocket(), Timeout: 5 * time.Second})
	web := subscribe(t, source, webPod)
	if m := web.update(); m.Identity() != webPod.Identity || m.Check(time.Now()) != nil {
		t.Errorf("identity %v, %v", m.Identity(), m.Check(time.Now()))
	}
	s.KillAgent()
	web.failure(webPod.Identity.String())
	s.StartAgent()
	web.update()
}

// SPIRE's agent renews at half of the life; in an outage what was there goes
// on, and an agent that comes back is noticed.
func TestRotationAndOutage(t *testing.T) {
	s, config := startSPIRE(t, 12*time.Second)
	s.Delegate()
	s.Entry(webID, []string{"k8s:ns:shop", "k8s:sa:web"})
	source := newSource(t, config)
	sub := subscribe(t, source, webPod)
	m := sub.update()
	for range 3 {
		next := sub.renewed(m)
		if left := time.Until(m.NotAfter()); left <= 0 {
			t.Errorf("renewed %v after the end", -left)
		}
		m = next
	}
	sub.drain()
	s.KillAgent()
	sub.failure("Unavailable", "is it running")
	s.StartAgent()
	if next := sub.renewed(m); !next.ValidAt(time.Now()) {
		t.Error("what came after the outage is not valid")
	}
}

// An agent that is there and does nothing is found out by the certificates
// that it does not renew, not only when they have ended.
func TestStoppedAgent(t *testing.T) {
	s, config := startSPIRE(t, 20*time.Second)
	s.Delegate()
	s.Entry(webID, []string{"k8s:ns:shop", "k8s:sa:web"})
	sub := subscribe(t, newSource(t, config), webPod)
	m := sub.update()
	if err := s.Agent().Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Agent().Signal(syscall.SIGCONT) })
	sub.failure("has not renewed it", "are left")
	if !m.ValidAt(time.Now()) {
		t.Error("reported after its end only")
	}
}

// Workloads of two servers that federate accept each other, where their entries
// say so, and nobody else's.
func TestFederation(t *testing.T) {
	home, _ := startSPIRE(t, time.Hour)
	abroad := servers.StartSPIRE(t, servers.SPIREConfig{TrustDomain: "friend.test", Life: time.Hour, UID: os.Getuid()})
	home.Delegate()
	abroad.Delegate()
	home.FederateWith(abroad)
	abroad.FederateWith(home)
	home.Entry(webID, []string{"k8s:sa:web"}, "-federatesWith", "spiffe://friend.test")
	abroad.Entry("/ns/shop/sa/friend", []string{"k8s:sa:friend"}, "-federatesWith", "spiffe://td.test")
	abroad.Entry("/ns/shop/sa/loner", []string{"k8s:sa:loner"})

	pod := func(account string) identity.Pod {
		return identity.Pod{Identity: model.Identity{TrustDomain: "friend.test", Namespace: "shop", ServiceAccount: account}}
	}
	federated := func(s *servers.SPIRE, pod identity.Pod, domain string) *identity.Material {
		t.Helper()
		sub := subscribe(t, newSource(t, spire.Config{Socket: s.AdminSocket(), Timeout: 5 * time.Second}), pod)
		m := sub.update()
		for domain != "" && m.Federated[domain] == nil {
			m = sub.update() // the bundle is on its way
		}
		return m
	}
	web := federated(home, webPod, "friend.test")
	friend, loner := federated(abroad, pod("friend"), "td.test"), federated(abroad, pod("loner"), "")
	for name, test := range map[string]struct {
		client, server *identity.Material
		refused        bool
	}{
		"a friend calls":    {friend, web, false},
		"a friend answers":  {web, friend, false},
		"one without calls": {loner, web, true}, // it does not know home's roots
		"one answers":       {web, loner, true},
	} {
		if err := handshake(t, test.client, test.server); (err != nil) != test.refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// handshake returns why either side refuses the other.
func handshake(t *testing.T, client, server *identity.Material) error {
	t.Helper()
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	served := make(chan error, 1)
	go func() {
		err := tls.Server(b, identity.ServerConfig(func() (*identity.Material, error) { return server, nil })).HandshakeContext(t.Context())
		_ = b.Close()
		served <- err
	}()
	c := tls.Client(a, identity.ClientConfig(client, []string{server.Identity().String()}))
	err := c.HandshakeContext(t.Context())
	if err == nil {
		_, err = c.Read(make([]byte, 1)) // in which the server's refusal would come
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	_ = a.Close()
	return errors.Join(err, <-served)
}
