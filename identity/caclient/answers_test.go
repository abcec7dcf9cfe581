package caclient_test

import (
	"crypto"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity/identitytest"
)

// What is bad is named, with the identity, and takes the place of nothing.
func TestRefusedAnswers(t *testing.T) {
	other := identitytest.NewCA(t)
	cases := map[string]struct {
		want  string
		spoil func(a *authority) func(*x509.Certificate, crypto.PublicKey) []string
	}{}
	template := func(name, want string, change func(*x509.Certificate)) {
		cases[name] = struct {
			want  string
			spoil func(a *authority) func(*x509.Certificate, crypto.PublicKey) []string
		}{want, func(a *authority) func(*x509.Certificate, crypto.PublicKey) []string {
			return func(c *x509.Certificate, public crypto.PublicKey) []string {
				change(c)
				return []string{pemOf(a.Sign(a.t, c, public)), pemOf(a.Root)}
			}
		}}
	}
	answer := func(name, want string, chain func(a *authority, c *x509.Certificate, public crypto.PublicKey) []string) {
		cases[name] = struct {
			want  string
			spoil func(a *authority) func(*x509.Certificate, crypto.PublicKey) []string
		}{want, func(a *authority) func(*x509.Certificate, crypto.PublicKey) []string {
			return func(c *x509.Certificate, public crypto.PublicKey) []string { return chain(a, c, public) }
		}}
	}
	bob := strings.Replace(alice.String(), "alice", "bob", 1)
	template("another identity", "bob", func(c *x509.Certificate) { c.URIs = identitytest.Template(t, bob).URIs })
	template("two identities", "URI SANs", func(c *x509.Certificate) { c.URIs = identitytest.Template(t, alice.String(), bob).URIs })
	template("no identity", "no URI SAN", func(c *x509.Certificate) { c.URIs = nil })
	template("expired", "check both clocks", func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Second) })
	template("not yet valid", "check both clocks", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = c.NotAfter, c.NotAfter.Add(time.Hour)
	})
	template("too short", "it ends in", func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(-16 * time.Second) })
	template("client only", "roots that came with it", func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
	template("an authority's", "may sign certificates", func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	template("a malformed identity", "/ns/", func(c *x509.Certificate) { c.URIs[0].Path = "/alice" })
	template("no signing", "may not sign a handshake", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
	below := func(n, shown int) func(a *authority, c *x509.Certificate, public crypto.PublicKey) []string {
		return func(a *authority, c *x509.Certificate, public crypto.PublicKey) []string {
			signer, chain := a.Below(a.t, n, func() crypto.Signer { return identitytest.NewKey(a.t) })
			return []string{pemOf(signer.Sign(a.t, c, public)), pemOf(chain[:shown]...), pemOf(a.Root)}
		}
	}
	answer("a missing intermediate", "roots that came with it", below(3, 2))
	answer("20 intermediates", "a chain of 21", below(20, 20))
	answer("roots of 10 MB", "larger than max", func(a *authority, c *x509.Certificate, public crypto.PublicKey) []string {
		root := pemOf(a.Root)
		return []string{pemOf(a.Sign(a.t, c, public)), strings.Repeat(root, 10<<20/len(root))}
	})
	answer("another key", "another key", func(a *authority, c *x509.Certificate, _ crypto.PublicKey) []string {
		return []string{pemOf(a.Sign(a.t, c, identitytest.NewKey(a.t).Public())), pemOf(a.Root)}
	})
	answer("other roots", "roots that came with it", func(a *authority, c *x509.Certificate, public crypto.PublicKey) []string {
		return []string{pemOf(a.Sign(a.t, c, public)), pemOf(other.Root)}
	})
	answer("no roots", "1 elements", func(a *authority, c *x509.Certificate, public crypto.PublicKey) []string {
		return []string{pemOf(a.Sign(a.t, c, public))}
	})
	answer("nothing", "0 elements", func(*authority, *x509.Certificate, crypto.PublicKey) []string { return nil })
	answer("noise", "no PEM", func(*authority, *x509.Certificate, crypto.PublicKey) []string { return []string{"x", "y"} })
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t)
			s := subscribe(t, a.config)
			first := s.update()
			a.change(func() { a.spoil = c.spoil(a) })
			err, _ := drive(t, a.clock, s.fails)
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), alice.String()) {
				t.Errorf("refused with %q, want a word of %q", err, c.want)
			}
			if len(s.updates) != 0 {
				t.Error("accepted")
			}
			if !first.ValidAt(a.clock.Now()) {
				t.Error("too late: the first certificate has ended")
			}
		})
	}
}

func TestIntermediates(t *testing.T) {
	a := newAuthority(t)
	key := identitytest.NewKey(t)
	template := identitytest.Template(t)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage, template.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	intermediate := &identitytest.CA{Root: a.Sign(t, template, key.Public()), Key: key}
	older := identitytest.NewCA(t)
	a.spoil = func(c *x509.Certificate, public crypto.PublicKey) []string {
		return []string{pemOf(intermediate.Sign(t, c, public)), pemOf(intermediate.Root), pemOf(older.Root, a.Root)}
	}
	m := subscribe(t, a.config).update()
	if len(m.Certificate.Certificate) != 2 || len(m.Authorities) != 2 {
		t.Errorf("%d certificates in the chain, %d roots; want 2 and 2", len(m.Certificate.Certificate), len(m.Authorities))
	}
}
