package check

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/proxy/admin"
)

// Certificates are judged as peers would on all nodes.
func TestChains(t *testing.T) {
	const id = "spiffe://td.test/ns/shop/sa/web"
	ca, other := identitytest.NewCA(t), identitytest.NewCA(t)
	held := func(ca *identitytest.CA, roots *identitytest.CA, change func(*x509.Certificate)) []admin.Certificate {
		template := identitytest.Template(t, id)
		if change != nil {
			change(template)
		}
		c := ca.Sign(t, template, identitytest.NewKey(t).Public())
		return []admin.Certificate{{Identity: id, NotBefore: c.NotBefore, NotAfter: c.NotAfter, Chain: [][]byte{c.Raw}, Roots: [][]byte{roots.Root.Raw}}}
	}
	good := held(ca, ca, nil)
	for name, test := range map[string]struct {
		b    []admin.Certificate // what node b has
		want string              // of the finding about it; empty for none
	}{
		"good":                {held(ca, ca, nil), ""},
		"nothing to verify":   {[]admin.Certificate{{Identity: id, NotAfter: time.Now().Add(time.Hour)}}, ""},
		"another authority":   {held(other, ca, nil), "refused on node a"},
		"other roots":         {held(ca, other, nil), "refused on node b"},
		"another name":        {held(ca, ca, func(c *x509.Certificate) { c.URIs[0].Path = "/ns/shop/sa/db" }), "it names spiffe://td.test/ns/shop/sa/db"},
		"two names":           {held(ca, ca, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), "2 URI SANs"},
		"for clients alone":   {held(ca, ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "incompatible key usage"},
		"no signing":          {held(ca, ca, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), "may not sign a handshake"},
		"not valid yet":       {held(ca, ca, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "not yet valid"},
		"noise":               {[]admin.Certificate{{Identity: id, NotAfter: time.Now().Add(time.Hour), Chain: [][]byte{{1}}}}, "cannot be read"},
		"of another domain":   {[]admin.Certificate{{Identity: "spiffe://far.test/ns/shop/sa/web", Roots: [][]byte{other.Root.Raw}}}, ""},
		"ended, as held says": {held(ca, other, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "refused on node b"},
	} {
		s := &state{now: time.Now}
		s.chains(map[string][]admin.Certificate{"a": good, "b": test.b})
		switch {
		case test.want == "" && len(s.findings) > 0:
			t.Errorf("%s: %+v", name, s.findings)
		case test.want != "" && len(s.findings) == 0:
			t.Errorf("%s: nothing found", name)
		case test.want != "" && (s.findings[0].Level != Broken || !strings.Contains(s.findings[0].Text, test.want)):
			t.Errorf("%s: %+v, want %q", name, s.findings[0], test.want)
		}
	}
}
