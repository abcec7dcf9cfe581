package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// A revocation ends by itself, without any news from the source.
func TestRevocationsEnd(t *testing.T) {
	f := newFixture(t)
	defer f.start("127.0.0.1:0")()
	s := f.connect()
	s.until(t, "the manifests", func(s *model.Snapshot) bool { return s.AddressesReady() && s.PoliciesReady() })
	write := func(until time.Time) {
		f.write("manifests/revoked.yaml", fmt.Sprintf(`
apiVersion: policy.tacit.mesh/v1alpha1
kind: RevokedIdentity
metadata: {name: web, namespace: tacit-system}
spec: {identity: "spiffe://cluster.local/ns/shop/sa/web", until: %q}
`, until.UTC().Format(time.RFC3339)))
	}
	revoked := func(s *model.Snapshot) bool {
		p, _ := s.Policy("tacit-system/revoked_identity_web")
		return p != nil
	}
	write(time.Now().Add(time.Hour))
	s.until(t, "the revocation", revoked)
	end := time.Now().Add(3 * time.Second).Truncate(time.Second)
	write(end)
	s.until(t, "its end", func(s *model.Snapshot) bool { return !revoked(s) })
	if time.Now().Before(end) {
		t.Errorf("it ended before %v", end)
	}
}
