package model

import (
	"fmt"
	"strings"
)

// DefaultTrustDomain is what an empty trust domain in a resource means.
const DefaultTrustDomain = "cluster.local"

// Identity is a workload's SPIFFE identity, spiffe://TD/ns/NS/sa/SA.
// It is comparable; the zero value means "no identity".
type Identity struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// ParseIdentity reads exactly the form spiffe://TD/ns/NS/sa/SA; anything else
// is no identity (Istio's rule, narrower than the SPIFFE standard).
func ParseIdentity(s string) (Identity, error) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return Identity{}, fmt.Errorf("identity %q: want spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT", s)
	}
	for _, p := range []string{parts[0], parts[2], parts[4]} {
		if p == "" || p == "." || p == ".." || strings.ContainsFunc(p, notIdentityRune) {
			return Identity{}, fmt.Errorf("identity %q: empty or invalid part %q", s, p)
		}
	}
	return Identity{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}, nil
}

// The SPIFFE-ID standard allows these in a path segment (section 2.2).
func notIdentityRune(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_')
}

// IsZero reports whether there is no identity.
func (i Identity) IsZero() bool { return i == Identity{} }

// String is the SPIFFE id, or "" for no identity.
func (i Identity) String() string {
	if i.IsZero() {
		return ""
	}
	return "spiffe://" + i.Principal()
}

// Principal is the SPIFFE id without its scheme, the form that policies use:
// "TD/ns/NS/sa/SA".
func (i Identity) Principal() string {
	if i.IsZero() {
		return ""
	}
	return i.TrustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}
