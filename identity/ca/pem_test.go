package ca

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestGenerateAndParse(t *testing.T) {
	key, root, err := Generate("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	for name, roots := range map[string][]byte{"root beside": root, "root among the chain alone": nil} {
		a, err := New(t.Context(), &memory{state: State{Key: key, Chain: root, Roots: roots}}, Config{TrustDomain: "cluster.local"})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(a.Roots(), root) {
			t.Errorf("%s: roots %s", name, a.Roots())
		}
		if _, err := a.ServerCertificate("tacitd.test"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	otherKey, otherRoot, err := Generate("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name             string
		key, chain, want []byte
	}{
		{"key of another", otherKey, root, []byte("is for another key")},
		{"no key", nil, root, []byte("key: want one private key")},
		{"a certificate for a key", root, root, []byte("key: not a private key")},
		{"no certificate", key, nil, []byte("no certificate")},
	} {
		_, err := newIssuer(&State{Key: test.key, Chain: test.chain}, "cluster.local", time.Now())
		if err == nil || !strings.Contains(err.Error(), string(test.want)) {
			t.Errorf("%s: got %v, want %s", test.name, err, test.want)
		}
	}
	i, err := newIssuer(&State{Key: key, Chain: root, Roots: otherRoot}, "cluster.local", time.Now())
	if err != nil || !bytes.Contains(encode(i.roots...), otherRoot) {
		t.Errorf("a further root is not kept: %v", err)
	}
}
