package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/xds/model"
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

// What a proxy leaves to the next one, of as many identities as a node may have.
func BenchmarkExport(b *testing.B) {
	const identities = 500
	ca := identitytest.NewCA(b)
	all := given{}
	store := identity.NewStore(all)
	for i := range identities {
		id := alice
		id.ServiceAccount = fmt.Sprint("web-", i)
		all[id] = ca.Issue(b, id)
		defer store.Acquire(identity.Subject{Identity: id})()
	}
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = store.Run(ctx) })
	defer running.Wait()
	defer cancel()
	for id := range all {
		if _, err := store.Get(ctx, identity.Subject{Identity: id}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := store.Export(); err != nil {
			b.Fatal(err)
		}
	}
}

// given has all certificates already.
type given map[model.Identity]*identity.Material

func (s given) Subscribe(ctx context.Context, subject identity.Subject, update func(*identity.Material), _ func(error)) error {
	update(s[subject.Identity])
	<-ctx.Done()
	return ctx.Err()
}

// A handshake costs hardly more than one that verifies no identity: at least
// nine tenths as many can be made. The two take turns, processor time counts,
// and the round in the middle, as whatever else the machine does makes a round
// unfair to either.
func TestHandshakesPerSecond(t *testing.T) {
	if os.Getenv("TACIT_LONG") == "" {
		t.Skip("a figure, for a machine with nothing else to do: set TACIT_LONG=1")
	}
	const rounds, turns, each = 11, 10, 10
	both := pairs(t)
	var ratios []float64
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
		ratios = append(ratios, ratio)
	}
	slices.Sort(ratios)
	middle := ratios[rounds/2]
	t.Logf("%.2f as many handshakes as crypto/tls alone makes", middle)
	if middle < 0.9 {
		t.Error("that is less than 0.9")
	}
}

func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
