package identity_test

import (
	"context"
	"crypto/x509"
	"testing"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Peers of another trust domain are judged by its bundle, and by nothing else.
func TestFederation(t *testing.T) {
	home, abroad := identitytest.NewCA(t), identitytest.NewCA(t)
	friend := model.Identity{TrustDomain: "friend.test", Namespace: "shop", ServiceAccount: "friend"}
	b := home.Issue(t, bob)
	federated := home.Issue(t, bob)
	federated.Federate(map[string][]*x509.Certificate{
		"friend.test": {abroad.Root}, "cluster.local": {abroad.Root}, "empty.test": nil,
	})
	for _, test := range []struct {
		name           string
		client, server *identity.Material
		reason         string // of the server
	}{
		{"a friend", abroad.Issue(t, friend), federated, ""},
		{"a friend, without a bundle", abroad.Issue(t, friend), b, "unknown_authority"},
		{"one of ours who poses as a friend", home.Issue(t, friend), federated, "unknown_authority"},
		{"a friend who poses as one of ours", abroad.Issue(t, alice), federated, "unknown_authority"},
		{"one of ours", home.Issue(t, alice), federated, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := identity.ClientConfig(test.client, []string{bob.String()})
			client.VerifyConnection = nil // the client's side is below
			_, _, err := handshake(t, client, identity.ServerConfig(getter(test.server)))
			if got := identity.FailureReason(err); got != test.reason {
				t.Errorf("the server's reason %q (%v), want %q", got, err, test.reason)
			}
		})
	}
}

// The client's side of it.
func TestFederatedServer(t *testing.T) {
	home, abroad := identitytest.NewCA(t), identitytest.NewCA(t)
	friend := model.Identity{TrustDomain: "friend.test", Namespace: "shop", ServiceAccount: "friend"}
	a := home.Issue(t, alice)
	a.Federate(map[string][]*x509.Certificate{"friend.test": {abroad.Root}})
	for name, test := range map[string]struct {
		server *identity.Material
		reason string
	}{
		"a friend":                          {abroad.Issue(t, friend), ""},
		"one of ours who poses as a friend": {home.Issue(t, friend), "unknown_authority"},
	} {
		t.Run(name, func(t *testing.T) {
			server := identity.ServerConfig(getter(test.server))
			server.VerifyConnection = nil
			_, err, _ := handshake(t, identity.ClientConfig(a, []string{friend.String()}), server)
			if got := identity.FailureReason(err); got != test.reason {
				t.Errorf("reason %q (%v), want %q", got, err, test.reason)
			}
		})
	}
}

// Another process has the bundles too.
func TestFederationIsKept(t *testing.T) {
	home, abroad := identitytest.NewCA(t), identitytest.NewCA(t)
	m := home.Issue(t, alice)
	m.Federate(map[string][]*x509.Certificate{"friend.test": {abroad.Root}})
	subject := identity.Subject{Identity: alice, Selectors: "pod-uid:1"}
	store, src := startStore(t)
	defer store.Acquire(subject)()
	next(t, src).update(m)
	data, err := store.Export()
	if err != nil {
		t.Fatal(err)
	}
	successor := identity.NewStore(src)
	if err := successor.Import(data); err != nil {
		t.Fatal(err)
	}
	defer successor.Acquire(subject)()
	defer successor.Acquire(identity.Subject{Identity: alice, Selectors: "pod-uid:2"})()
	got, err := successor.Get(t.Context(), subject)
	if err != nil || got.Federated["friend.test"] == nil || !got.Federated["friend.test"].Authorities[0].Equal(abroad.Root) {
		t.Errorf("Get = %+v, %v", got, err)
	}
	if err := successor.Lack(identity.Subject{Identity: alice, Selectors: "pod-uid:2"}); err == nil {
		t.Error("another pod of the same identity has the first one's certificate")
	}
}

// A client of another name of the own trust domain is judged by the own roots.
func TestAliasOfTrustDomain(t *testing.T) {
	home, abroad := identitytest.NewCA(t), identitytest.NewCA(t)
	renamed := alice
	renamed.TrustDomain = "renamed.test"
	other := alice
	other.TrustDomain = "other.test"
	server := home.Issue(t, alice)
	federated := home.Issue(t, alice)
	federated.Federate(map[string][]*x509.Certificate{"renamed.test": {abroad.Root}})
	for name, test := range map[string]struct {
		server, client *identity.Material
		reason         string
	}{
		"by its other name":                     {server, home.Issue(t, renamed), ""},
		"of another authority":                  {server, abroad.Issue(t, renamed), "unknown_authority"},
		"by a name of nobody here":              {server, home.Issue(t, other), "wrong_trust_domain"},
		"by its other name, of a bundle too":    {federated, home.Issue(t, renamed), ""},
		"of the authority of that name's roots": {federated, abroad.Issue(t, renamed), "unknown_authority"},
	} {
		t.Run(name, func(t *testing.T) {
			client := identity.ClientConfig(test.client, []string{alice.String()})
			client.VerifyConnection = nil
			_, _, err := handshake(t, client, identity.ServerConfig(getter(test.server), alsoRenamed))
			if got := identity.FailureReason(err); got != test.reason {
				t.Errorf("reason %q (%v), want %q", got, err, test.reason)
			}
		})
	}
}

var alsoRenamed = identity.WithTrustDomains(func(name string) (bool, error) { return name == "renamed.test", nil })

// So is a server, even if there is a bundle of that name.
func TestAliasOfServer(t *testing.T) {
	home, abroad := identitytest.NewCA(t), identitytest.NewCA(t)
	renamed := bob
	renamed.TrustDomain = "renamed.test"
	a := home.Issue(t, alice)
	a.Federate(map[string][]*x509.Certificate{"renamed.test": {abroad.Root}})
	for name, test := range map[string]struct {
		server *identity.Material
		reason string
	}{
		"by its other name":                     {home.Issue(t, renamed), ""},
		"of the authority of that name's roots": {abroad.Issue(t, renamed), "unknown_authority"},
	} {
		t.Run(name, func(t *testing.T) {
			server := identity.ServerConfig(getter(test.server))
			server.VerifyConnection = nil
			_, err, _ := handshake(t, identity.ClientConfig(a, []string{bob.String(), renamed.String()}, alsoRenamed), server)
			if got := identity.FailureReason(err); got != test.reason {
				t.Errorf("reason %q (%v), want %q", got, err, test.reason)
			}
		})
	}
}

// As long as it is not known whether a name is the own trust domain's, nobody
// of that name is accepted.
func TestAliasNotKnown(t *testing.T) {
	home, abroad := identitytest.NewCA(t), identitytest.NewCA(t)
	renamed := alice
	renamed.TrustDomain = "renamed.test"
	server, federated := home.Issue(t, alice), home.Issue(t, alice)
	federated.Federate(map[string][]*x509.Certificate{"renamed.test": {abroad.Root}})
	late := identity.WithTrustDomains(func(string) (bool, error) { return false, context.DeadlineExceeded })
	for name, test := range map[string]struct{ server, client *identity.Material }{
		"without a bundle": {server, home.Issue(t, renamed)},
		"with a bundle":    {federated, abroad.Issue(t, renamed)},
	} {
		t.Run(name, func(t *testing.T) {
			client := identity.ClientConfig(test.client, []string{alice.String()})
			client.VerifyConnection = nil
			_, _, err := handshake(t, client, identity.ServerConfig(getter(test.server), late))
			if got := identity.FailureReason(err); got != "timeout" {
				t.Errorf("reason %q (%v), want timeout", got, err)
			}
		})
	}
}
