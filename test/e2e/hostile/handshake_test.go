package hostile

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/test/e2e"
)

// Whoever cannot prove an identity of the mesh gets no answer to a request,
// and the log and a metric say why.
func TestHandshakes(t *testing.T) {
	m, ca := start(t)
	undisturbed := bystander(t, m)
	defer undisturbed()
	leaf := func(ca *identitytest.CA, spoil func(*x509.Certificate), uris ...string) *tls.Config {
		template := identitytest.Template(t, uris...)
		if spoil != nil {
			spoil(template)
		}
		return clientTLS(certificate(t, ca, template))
	}
	good := func(change func(*tls.Config)) *tls.Config {
		c := leaf(ca, nil, client)
		change(c)
		return c
	}
	for _, c := range []struct {
		name, reason string
		config       *tls.Config
	}{
		{"no certificate", "no_certificate", clientTLS()},
		{"another trust domain", "wrong_trust_domain", leaf(ca, nil, "spiffe://elsewhere/ns/mesh/sa/client")},
		{"another authority", "unknown_authority", leaf(identitytest.NewCA(t), nil, client)},
		{"signed by itself", "unknown_authority", clientTLS(selfSigned(t))},
		{"expired", "expired", leaf(ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, client)},
		{"not valid yet", "expired", leaf(ca, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, client)},
		{"no URI", "no_spiffe_id", leaf(ca, func(c *x509.Certificate) { c.DNSNames = []string{"client.mesh.svc"} })},
		{"a URI that is no SPIFFE id", "no_spiffe_id", leaf(ca, nil, "https://cluster.local/ns/mesh/sa/client")},
		{"a SPIFFE id that is no workload's", "no_spiffe_id", leaf(ca, nil, "spiffe://cluster.local/node/a")},
		{"two URIs", "several_uri_sans", leaf(ca, nil, client, "spiffe://cluster.local/ns/mesh/sa/admin")},
		{"only a server's usage", "bad_usage", leaf(ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, client)},
		{"a signing certificate", "bad_usage", leaf(ca, func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		}, client)},
		{"TLS 1.2", "protocol", good(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 })},
		{"no ALPN", "no_alpn", good(func(c *tls.Config) { c.NextProtos = nil })},
		{"another ALPN", "no_alpn", good(func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} })},
	} {
		t.Run(c.name, func(t *testing.T) {
			counted := rises(t, m, "b", "tacit_tls_handshake_failures_total", "direction=inbound", "reason="+c.reason)
			logged := logs(t, m, "b", `"TLS handshake failed"`, `"reason":"`+c.reason+`"`, `"src.addr":"198.18.1.10:`)
			a := newAttacker(tls.Client(dial(t, m, "mesh/client", victimHBONE), c.config))
			if answer := a.reach(); answer != "" {
				t.Errorf("the request was answered with %s", answer)
			}
			counted()
			logged()
		})
	}
}

// reach tries to get any answer to a request.
func (a *attacker) reach() string {
	if a.Handshake() != nil {
		return ""
	}
	_, _ = io.WriteString(a.Conn, http2.ClientPreface)
	_ = a.WriteSettings()
	_ = a.connect(1, victim+":8080")
	f, err := a.ReadFrame()
	if err != nil {
		return ""
	}
	return f.Header().String()
}

func selfSigned(t *testing.T) tls.Certificate {
	ca := identitytest.NewCA(t)
	template := identitytest.Template(t, client)
	der, err := x509.CreateCertificate(nil, template, template, ca.Key.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: ca.Key}
}

// What is not TLS at all is cut, with its reason.
func TestNotTLS(t *testing.T) {
	m, _ := start(t)
	undisturbed := bystander(t, m)
	defer undisturbed()
	for _, c := range []struct{ name, sends, reason string }{
		{"HTTP/1.1", "GET / HTTP/1.1\r\nHost: " + victim + "\r\n\r\n", "not_tls"},
		{"HTTP/2 in clear", http2.ClientPreface, "not_tls"},
		{"zeros", string(make([]byte, 100_000)), "not_tls"},
		{"a record of 64 KB", "\x16\x03\x01\xff\xff" + string(make([]byte, 70_000)), "not_tls"},
		{"a hello cut short", "\x16\x03\x01\x00\x50\x01\x00\x00\x4c", "closed"},
		{"a hello that is none", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "protocol"},
		{"a hello of 16 MB", "\x16\x03\x01\x00\x05\x01\xff\xff\xff\x00", "protocol"},
	} {
		t.Run(c.name, func(t *testing.T) {
			counted := rises(t, m, "b", "tacit_tls_handshake_failures_total", "reason="+c.reason)
			conn := dial(t, m, "outside/plain", victimHBONE)
			_, _ = io.WriteString(conn, c.sends)
			_ = conn.CloseWrite()
			if _, err := io.ReadAll(conn); err != nil && isTimeout(err) {
				t.Error("the connection was not ended")
			}
			counted()
		})
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// Hundreds of callers that say nothing hold a bounded number of connections,
// none of them for longer than the deadline, and no one else is kept waiting.
func TestSilentCallers(t *testing.T) {
	t.Parallel() // it waits for deadlines
	m, ca := start(t)
	undisturbed := bystander(t, m)
	defer undisturbed()
	before := usageOf(t, m, "b")
	tooMany := rises(t, m, "b", "tacit_tls_handshake_failures_total", "reason=too_many")
	timedOut := rises(t, m, "b", "tacit_tls_handshake_failures_total", "reason=timeout")
	const callers = 400
	ended := make(chan error, callers)
	for range callers {
		c, err := tryDial(m, "outside/plain", victimHBONE)
		if err != nil { // it was cut off before it was known to be connected
			ended <- err
			continue
		}
		defer c.Close()
		go func() {
			_, err := c.Read(make([]byte, 1))
			ended <- err
		}()
	}
	tooMany()
	if now := usageOf(t, m, "b"); now.descriptors > before.descriptors+100 {
		t.Errorf("%d descriptors before %d silent callers, %d with them", before.descriptors, callers, now.descriptors)
	}
	// Another source is served meanwhile.
	a := attack(t, m, ca, "mesh/client", victimHBONE)
	if err := a.connect(1, victim+":8080"); err != nil {
		t.Fatal(err)
	}
	if got := a.answer(1); got != "200" {
		t.Errorf("beside silent callers a request is answered with %s", got)
	}
	for n := range callers {
		if err := <-ended; err == nil || isTimeout(err) {
			t.Fatalf("after %d callers: not cut off (%v)", n, err)
		}
	}
	timedOut()
	m.Eventually("descriptors are given back", func() error {
		if now := usageOf(t, m, "b"); now.descriptors > before.descriptors+30 {
			return fmt.Errorf("%d before, %d now", before.descriptors, now.descriptors)
		}
		return nil
	})
}

// A peer that completes TLS and then says nothing, or only half of what it has
// to say, is cut too.
func TestSilentAfterTLS(t *testing.T) {
	t.Parallel() // it waits for deadlines
	m, ca := start(t)
	undisturbed := bystander(t, m)
	defer undisturbed()
	counted := rises(t, m, "b", "tacit_peer_cuts_total", "cause=slow_handshake")
	var callers sync.WaitGroup
	for _, sends := range []string{"", http2.ClientPreface[:10], http2.ClientPreface} {
		c := tls.Client(dial(t, m, "mesh/client", victimHBONE), clientTLS(certificate(t, ca, identitytest.Template(t, client))))
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		callers.Go(func() {
			_, _ = io.WriteString(c, sends)
			if _, err := io.Copy(io.Discard, c); isTimeout(err) {
				t.Errorf("after %q the connection was not ended in %v", sends, e2e.Patience)
			}
		})
	}
	callers.Wait()
	counted()
}
