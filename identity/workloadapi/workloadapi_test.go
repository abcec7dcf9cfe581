package workloadapi_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/identity/workloadapi"
	"github.com/tacit-mesh/tacit/test/servers"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 40 * time.Second

var tacitd = model.Identity{TrustDomain: "td.test", Namespace: "tacit-system", ServiceAccount: "tacitd"}

// subscriber is a running subscription.
type subscriber struct {
	t       *testing.T
	updates chan *identity.Material
	fails   chan error
}

func subscribe(t *testing.T, socket string) subscriber {
	t.Helper()
	source, err := workloadapi.New(workloadapi.Config{Socket: socket, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	s := subscriber{t, make(chan *identity.Material, 1000), make(chan error, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		err := source.Subscribe(ctx, identity.Subject{Identity: tacitd}, func(m *identity.Material) { s.updates <- m }, func(err error) { s.fails <- err })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Subscribe = %v, want the context's error", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := source.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s subscriber) update() *identity.Material {
	s.t.Helper()
	select {
	case m := <-s.updates:
		return m
	case <-time.After(patience):
		s.t.Fatalf("no certificate; %d failures", len(s.fails))
		return nil
	}
}

// failure waits for one that says all this.
func (s subscriber) failure(words ...string) {
	s.t.Helper()
	var last error
	for end := time.After(patience); ; {
		select {
		case last = <-s.fails:
			all := true
			for _, w := range append(words, tacitd.String()) {
				all = all && strings.Contains(last.Error(), w)
			}
			if all {
				return
			}
		case <-end:
			s.t.Fatalf("no failure says %q; the last: %v", words, last)
		}
	}
}

// With SPIRE: an entry that is missing, one that comes, renewals, a federated
// bundle, and an agent that is away for a while.
func TestSPIRE(t *testing.T) {
	s := servers.StartSPIRE(t, servers.SPIREConfig{TrustDomain: "td.test", Life: 12 * time.Second, UID: os.Getuid()})
	sub := subscribe(t, s.WorkloadSocket())
	sub.failure("PermissionDenied", "an entry that fits this process", s.WorkloadSocket())
	process := []string{"unix:uid:" + strconv.Itoa(os.Getuid())}
	other := s.Entry("/ns/tacit-system/sa/other", process)
	sub.failure(`"spiffe://td.test/ns/tacit-system/sa/other"`, "not that one")
	s.Delete(other)
	friend := identitytest.NewCA(t)
	s.Federate("friend.test", friend.Root)
	s.Entry("/ns/tacit-system/sa/tacitd", process, "-dns", "tacitd.test", "-federatesWith", "spiffe://friend.test")
	m := sub.update()
	for m.Federated["friend.test"] == nil {
		m = sub.update()
	}
	if m.Identity() != tacitd || !m.Federated["friend.test"].Authorities[0].Equal(friend.Root) || m.Leaf.VerifyHostname("tacitd.test") != nil {
		t.Errorf("identity %v, names %v, federated %v", m.Identity(), m.Leaf.DNSNames, m.Federated)
	}
	renewed := func() {
		t.Helper()
		for {
			next := sub.update()
			if next.Leaf.Equal(m.Leaf) {
				continue
			}
			if !next.ValidAt(time.Now()) {
				t.Error("what came is not valid")
			}
			m = next
			return
		}
	}
	renewed()
	renewed()
	s.KillAgent()
	sub.failure("Unavailable", "is it running")
	sub.failure("has not renewed it", "are left")
	s.StartAgent()
	renewed()
}

// fake says what a test wants, to whoever asks.
type fake struct {
	api.UnimplementedSpiffeWorkloadAPIServer

	mu      sync.Mutex
	answer  *api.X509SVIDResponse
	changed chan struct{}
}

func (f *fake) say(answer *api.X509SVIDResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) FetchX509SVID(_ *api.X509SVIDRequest, stream api.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	for {
		f.mu.Lock()
		answer, changed := f.answer, f.changed
		f.mu.Unlock()
		if err := stream.Send(answer); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func startFake(t *testing.T) (*fake, string) {
	t.Helper()
	f := &fake{answer: &api.X509SVIDResponse{}, changed: make(chan struct{})}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	api.RegisterSpiffeWorkloadAPIServer(server, f)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	return f, socket
}

// What is bad is named, with identity and source, and takes nothing away.
func TestBadAnswers(t *testing.T) {
	f, socket := startFake(t)
	sub := subscribe(t, socket)
	ca, key := identitytest.NewCA(t), identitytest.NewKey(t)
	answer := func(key crypto.Signer, bundle []byte, change func(*x509.Certificate)) *api.X509SVIDResponse {
		template := identitytest.Template(t, tacitd.String())
		if change != nil {
			change(template)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		leaf := ca.Sign(t, template, key.Public())
		return &api.X509SVIDResponse{Svids: []*api.X509SVID{{SpiffeId: tacitd.String(), X509Svid: leaf.Raw, X509SvidKey: der, Bundle: bundle}}}
	}
	good := answer(key, ca.Root.Raw, nil)
	f.say(good)
	first := sub.update()
	foreign := answer(key, ca.Root.Raw, nil)
	foreign.Svids[0].X509SvidKey = answer(identitytest.NewKey(t), ca.Root.Raw, nil).Svids[0].X509SvidKey
	below := func(n, shown int) *api.X509SVIDResponse {
		signer, chain := ca.Below(t, n, func() crypto.Signer { return identitytest.NewKey(t) })
		all := answer(key, ca.Root.Raw, nil)
		all.Svids[0].X509Svid = signer.Sign(t, identitytest.Template(t, tacitd.String()), key.Public()).Raw
		for _, c := range chain[:shown] {
			all.Svids[0].X509Svid = append(all.Svids[0].X509Svid, c.Raw...)
		}
		return all
	}
	for name, test := range map[string]struct {
		want   string
		answer *api.X509SVIDResponse
	}{
		"nothing":           {"no SVIDs", &api.X509SVIDResponse{}},
		"empty bundle":      {"are all needed", answer(key, nil, nil)},
		"another authority": {"unknown authority", answer(key, identitytest.NewCA(t).Root.Raw, nil)},
		"noise for bundle":  {"malformed", answer(key, []byte("noise"), nil)},
		"10 MB":             {"larger than max", answer(key, make([]byte, 10<<20), nil)},
		"expired":           {"check both clocks", answer(key, ca.Root.Raw, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })},
		"for clients alone": {"incompatible key usage", answer(key, ca.Root.Raw, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })},
		"no id":             {"URI SAN", answer(key, ca.Root.Raw, func(c *x509.Certificate) { c.URIs = nil })},
		"no signing":        {"key usage", answer(key, ca.Root.Raw, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })},
		"20 intermediates":  {"a chain of 21", below(20, 20)},
		"one missing":       {"unknown authority", below(3, 2)},
		"two ids":           {"URI SAN", answer(key, ca.Root.Raw, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) })},
		"another key":       {"key", foreign},
	} {
		t.Run(name, func(t *testing.T) {
			f.say(test.answer)
			subscriber{t, sub.updates, sub.fails}.failure(test.want, socket)
			for len(sub.updates) > 0 {
				if m := <-sub.updates; !m.Leaf.Equal(first.Leaf) {
					t.Error("it has been taken")
				}
			}
		})
	}
	f.say(answer(key, ca.Root.Raw, nil))
	for sub.update().Leaf.Equal(first.Leaf) {
	}
}

// Sockets that do anything but speak.
func TestBadSockets(t *testing.T) {
	for name, test := range map[string]struct {
		want  string
		serve func(net.Conn)
	}{
		"hangs":          {"does not answer", func(net.Conn) {}},
		"closes":         {"is it running", func(c net.Conn) { _ = c.Close() }},
		"half a message": {"does not answer", func(c net.Conn) { _, _ = c.Write([]byte{0, 0, 12, 4, 0, 0, 0}) }},
	} {
		t.Run(name, func(t *testing.T) {
			socket := identitytest.Socket(t, test.serve)
			subscribe(t, socket).failure(test.want, socket)
		})
	}
}
