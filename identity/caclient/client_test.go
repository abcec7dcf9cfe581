package caclient_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var alice = model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "alice"}

// subscriber is one running subscription to alice's certificate.
type subscriber struct {
	t       *testing.T
	updates chan *identity.Material
	fails   chan error
}

func subscribe(t *testing.T, config caclient.Config) subscriber {
	t.Helper()
	client, err := caclient.New(config)
	if err != nil {
		t.Fatal(err)
	}
	s := subscriber{t, make(chan *identity.Material, 100), make(chan error, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		err := client.Subscribe(ctx, identity.Subject{Identity: alice}, func(m *identity.Material) { s.updates <- m }, func(err error) {
			select {
			case s.fails <- err:
			default: // more than any test looks at
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Subscribe = %v, want the context's error", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s subscriber) update() *identity.Material {
	s.t.Helper()
	return receive(s.t, s.updates, "certificate")
}

func (s subscriber) failure() error {
	s.t.Helper()
	return receive(s.t, s.fails, "failure")
}

func receive[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// drive lets time pass, wait by wait, until the client has something to say,
// and returns how much passed.
func drive[T any](t *testing.T, c *clock, from <-chan T) (T, time.Duration) {
	t.Helper()
	start := c.Now()
	for {
		select {
		case v := <-from:
			return v, c.Now().Sub(start)
		case step := <-c.waiting:
			if len(from) > 0 { // said before it began to wait
				c.waiting <- step
				continue
			}
			c.pass(step)
		case <-time.After(20 * time.Second):
			t.Fatal("the client neither waits nor says anything")
		}
	}
}

func TestRequest(t *testing.T) {
	a := newAuthority(t)
	m := subscribe(t, a.config).update()
	if m.Identity() != alice || !m.Roots.Equal(poolOf(a.Root)) || m.Certificate.PrivateKey == nil {
		t.Errorf("got %+v", m)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	r, md := a.requests[0], a.metadata[0]
	block, _ := pem.Decode([]byte(r.GetCsr()))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if len(csr.Subject.Names) != 0 || len(csr.URIs) != 1 || csr.URIs[0].String() != alice.String() || len(csr.DNSNames) != 0 {
		t.Errorf("the CSR names %v %v %v", csr.Subject, csr.URIs, csr.DNSNames)
	}
	if got := r.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue(); got != alice.String() {
		t.Errorf("ImpersonatedIdentity %q", got)
	}
	if r.GetValidityDuration() != 3600 {
		t.Errorf("validity_duration %d", r.GetValidityDuration())
	}
	if got := md.Get("clusterid"); len(got) != 1 || got[0] != "Kubernetes" {
		t.Errorf("clusterid %q", got)
	}
}

func TestRenewalAtHalfLife(t *testing.T) {
	a := newAuthority(t)
	s := subscribe(t, a.config)
	before := s.update()
	for i := range 5 {
		after, waited := drive(t, a.clock, s.updates)
		// Certificates count in whole seconds, so the life is 19 to 20 s.
		least := 6650 * time.Millisecond
		if i == 0 { // it was issued together with all others of the node
			least = 3800 * time.Millisecond
		}
		if waited < least || waited > 10*time.Second {
			t.Errorf("renewed after %s of 20 s", waited)
		}
		if after.Certificate.PrivateKey.(*ecdsa.PrivateKey).Equal(before.Certificate.PrivateKey) {
			t.Error("the key was used again")
		}
		before = after
	}
	if len(s.fails) != 0 {
		t.Error(<-s.fails)
	}
}

// What is issued together, as a node starts or an outage ends, is renewed at
// very different times: of so many about once in a million times not so, if the
// life is 19 s, as in TestRenewalAtHalfLife.
func TestRenewalsAreSpread(t *testing.T) {
	const n = 150
	start := func(waited []time.Duration) []time.Duration {
		a := newAuthority(t)
		s := subscribe(t, a.config)
		s.update()
		_, d := drive(t, a.clock, s.updates)
		return append(waited, d)
	}
	a := newAuthority(t)
	s := subscribe(t, a.config)
	outage := func(waited []time.Duration) []time.Duration {
		a.change(func() { a.failure = status.Error(codes.Unavailable, "away") })
		drive(t, a.clock, s.fails)
		a.change(func() { a.failure = nil })
		drive(t, a.clock, s.updates)
		_, d := drive(t, a.clock, s.updates)
		return append(waited, d)
	}
	s.update()
	for after, once := range map[string]func([]time.Duration) []time.Duration{"a start": start, "an outage": outage} {
		var waited []time.Duration
		for range n {
			waited = once(waited)
		}
		if soonest, latest := slices.Min(waited), slices.Max(waited); soonest > 5*time.Second || latest < 9*time.Second {
			t.Errorf("after %s, renewed after %v to %v of 20 s", after, soonest, latest)
		}
	}
}

// A machine that was suspended has timers that stood still, and a certificate
// that did not.
func TestRenewalAfterSuspend(t *testing.T) {
	a := newAuthority(t)
	a.life = 24 * time.Hour
	s := subscribe(t, a.config)
	s.update()
	for range 3 { // nothing happens while time passes as usual
		step := receive(t, a.clock.waiting, "wait")
		if step > 15*time.Second {
			t.Fatalf("it will not look at the clock for %s", step)
		}
		a.clock.pass(step)
	}
	step := receive(t, a.clock.waiting, "wait")
	a.clock.set(13 * time.Hour)
	if len(s.updates) != 0 {
		t.Fatal("renewed too early")
	}
	a.clock.pass(step)
	s.update()
}

func TestRenewalWhenTheClockIsSetBack(t *testing.T) {
	a := newAuthority(t)
	s := subscribe(t, a.config)
	s.update()
	step := receive(t, a.clock.waiting, "wait")
	a.clock.set(-24 * time.Hour) // before the certificate's life
	a.clock.pass(step)
	if m := s.update(); !m.ValidAt(a.clock.Now()) {
		t.Error("not valid by the new time")
	}
}

func TestOutage(t *testing.T) {
	a := newAuthority(t)
	a.life = 24 * time.Hour
	s := subscribe(t, a.config)
	away := func(limit time.Duration) {
		t.Helper()
		var waited time.Duration
		for range 12 {
			var err error
			err, waited = drive(t, a.clock, s.fails)
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), alice.String()) {
				t.Fatalf("failure %v", err)
			}
			if waited > limit {
				t.Fatalf("waited %s, limit %s", waited, limit)
			}
		}
		if waited < limit*8/10 {
			t.Errorf("after so many failures it waits for %s, want about %s", waited, limit)
		}
	}
	s.update()
	a.change(func() { a.failure = status.Error(codes.Unavailable, "away") })
	step := receive(t, a.clock.waiting, "wait")
	a.clock.set(13 * time.Hour) // past half of its life
	a.clock.pass(step)
	away(150 * time.Second)
	step = receive(t, a.clock.waiting, "wait")
	a.clock.set(13 * time.Hour) // past its end
	a.clock.pass(step)
	away(15 * time.Second)
	a.change(func() { a.failure = nil })
	if m, _ := drive(t, a.clock, s.updates); !m.ValidAt(a.clock.Now()) {
		t.Error("not valid")
	}
}

// However long an outage was, what ends soon is replaced as soon as it is over.
func TestOutageEndsBeforeTheCertificate(t *testing.T) {
	for _, life := range []time.Duration{20 * time.Second, time.Hour} {
		t.Run(life.String(), func(t *testing.T) {
			a := newAuthority(t)
			a.life = life
			s := subscribe(t, a.config)
			end := s.update().NotAfter()
			a.change(func() { a.failure = status.Error(codes.Unavailable, "away") })
			for end.Sub(a.clock.Now()) > life/5 {
				drive(t, a.clock, s.fails)
			}
			a.change(func() { a.failure = nil })
			if _, waited := drive(t, a.clock, s.updates); waited > max(life/40, time.Second) || !a.clock.Now().Before(end) {
				t.Errorf("renewed %s after the outage, %s before the end", waited, end.Sub(a.clock.Now()))
			}
		})
	}
}

// The end of a certificate is no reason to ask less often than just before.
func TestOutageEndsAfterTheCertificate(t *testing.T) {
	a := newAuthority(t)
	s := subscribe(t, a.config)
	end := s.update().NotAfter()
	a.change(func() { a.failure = status.Error(codes.Unavailable, "away") })
	for past := time.Duration(0); past < 7*time.Second; past = a.clock.Now().Sub(end) {
		if _, waited := drive(t, a.clock, s.fails); past > 0 && waited > time.Second {
			t.Errorf("asked again after %s, %s after the end", waited, past)
		}
	}
	a.change(func() { a.failure = nil })
	if _, waited := drive(t, a.clock, s.updates); waited > time.Second {
		t.Errorf("replaced %s after the outage", waited)
	}
}

func TestTokenIsReadAgain(t *testing.T) {
	a := newAuthority(t)
	a.token = "new"
	s := subscribe(t, a.config)
	if err := s.failure(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "token") {
		t.Fatalf("failure %v", err)
	}
	writeFile(t, a.config.TokenFile, " \n")
	if err, _ := drive(t, a.clock, s.fails); !strings.Contains(err.Error(), "is empty") {
		t.Fatalf("failure %v", err)
	}
	writeFile(t, a.config.TokenFile, "new")
	drive(t, a.clock, s.updates)
}

func TestRootsAreReadAgain(t *testing.T) {
	a := newAuthority(t)
	writeFile(t, a.config.RootsFile, pemOf(identitytest.NewCA(t).Root))
	s := subscribe(t, a.config)
	if err := s.failure(); !strings.Contains(err.Error(), "unknown authority") {
		t.Fatalf("failure %v", err)
	}
	writeFile(t, a.config.RootsFile, pemOf(a.Root))
	drive(t, a.clock, s.updates) // gRPC's own pause between connections is real time
}

func TestWrongServerName(t *testing.T) {
	a := newAuthority(t)
	a.config.ServerName = "other.test"
	if err := subscribe(t, a.config).failure(); !strings.Contains(err.Error(), serverName) {
		t.Errorf("failure %v", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.requests) != 0 {
		t.Error("the token was sent to an impostor")
	}
}

func poolOf(certs ...*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}
