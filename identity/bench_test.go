package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
)

// pairs are the two ends of a handshake in which both prove who they are: ours,
// and what crypto/tls does by itself with the same certificates.
func pairs(t testing.TB) map[string]func() error {
	ca := identitytest.NewCA(t)
	a := ca.Issue(t, alice)
	key := identitytest.NewKey(t)
	template := identitytest.Template(t, bob.String())
	template.DNSNames = []string{"bob"}
	leaf := ca.Sign(t, template, key.Public())
	b, err := identity.NewMaterial([]*x509.Certificate{leaf}, key, a.Authorities)
	if err != nil {
		t.Fatal(err)
	}
	curves := identity.ClientConfig(a, nil).CurvePreferences
	bare := &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: curves, NextProtos: []string{"h2"}, SessionTicketsDisabled: true,
		RootCAs: a.Roots, ClientCAs: a.Roots, ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "bob",
	}
	client, server := bare.Clone(), bare.Clone()
	client.Certificates, server.Certificates = []tls.Certificate{*a.Certificate}, []tls.Certificate{*b.Certificate}
	return map[string]func() error{
		"tacit": func() error {
			return shake(identity.ClientConfig(a, []string{bob.String()}), identity.ServerConfig(getter(b)))
		},
		"crypto-tls": func() error { return shake(client, server) },
	}
}

// shake is one handshake, without a network.
func shake(client, server *tls.Config) error {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	served := make(chan error, 1)
	go func() {
		conn := tls.Server(b, server)
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		served <- err
	}()
	conn := tls.Client(a, client)
	if err := conn.Handshake(); err != nil {
		_ = a.Close()
		<-served
		return err
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		return err
	}
	return <-served
}

func BenchmarkHandshake(b *testing.B) {
	for name, once := range pairs(b) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := once(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A handshake costs hardly more than one that verifies no identity: at least
// nine tenths as many can be made. The two take turns, processor time counts,
// and the best of some rounds, as whatever else the machine does makes a round
// unfair to either.
func TestHandshakesPerSecond(t *testing.T) {
	if os.Getenv("TACIT_LONG") == "" {
		t.Skip("a figure, for a machine with nothing else to do: set TACIT_LONG=1")
	}
	const rounds, turns, each = 10, 10, 10
	both := pairs(t)
	best := 0.0
	for range rounds {
		used := map[string]time.Duration{}
		for range turns {
			for name, once := range both {
				began := cpu(t)
				for range each {
					if err := once(); err != nil {
						t.Fatal(name, err)
					}
				}
				used[name] += cpu(t) - began
			}
		}
		ratio := float64(used["crypto-tls"]) / float64(used["tacit"])
		t.Logf("%v each, crypto/tls alone %v: %.2f", used["tacit"]/(turns*each), used["crypto-tls"]/(turns*each), ratio)
		if best = max(best, ratio); best >= 0.9 {
			return
		}
	}
	t.Errorf("%.2f as many handshakes as crypto/tls alone makes", best)
}

func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
