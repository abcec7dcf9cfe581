package main

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/identity/identitytest"
)

// A CA that somebody put there is refused with the reason, or used: an
// intermediate that cert-manager has made signs, and its root is handed out.
func TestForeignCA(t *testing.T) {
	c, f := newCluster(t), newFixture(t)
	secrets := c.objects.CoreV1().Secrets("tacit-system")
	bad := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "tacit-system", Name: ca.Secret}, Data: map[string][]byte{"tls.key": []byte("x")}}
	if _, err := secrets.Create(t.Context(), bad, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	err := run(t.Context(), options{serverName: serverName, clusterOptions: clusterOptions{kubernetes: true, namespace: "tacit-system", clients: c}}, f.log)
	if err == nil || !strings.Contains(err.Error(), "open the certificate authority in Secret tacit-system/tacit-ca: key: want one private key") {
		t.Errorf("got %v", err)
	}

	root := identitytest.NewCA(t)
	signer, chain := root.Below(t, 2, func() crypto.Signer { return identitytest.NewKey(t) })
	key, err := x509.MarshalPKCS8PrivateKey(signer.Key)
	if err != nil {
		t.Fatal(err)
	}
	armor := func(kind string, ders ...[]byte) (text []byte) {
		for _, der := range ders {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
		}
		return text
	}
	good := bad.DeepCopy()
	good.Annotations = map[string]string{managedByCertManager: "mesh-ca"}
	good.Data = map[string][]byte{
		"tls.key": armor("PRIVATE KEY", key), "tls.crt": armor("CERTIFICATE", chain[0].Raw, chain[1].Raw), "ca.crt": armor("CERTIFICATE", root.Root.Raw),
	}
	if _, err := secrets.Update(t.Context(), good, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.write("token", proxyToken(t))
	defer f.startOn(c, nil)()
	f.awaitRoot(c)
	handedOut, err := caclient.Roots(f.path("ca/ca.crt"))
	if err != nil || len(handedOut) != 1 || !handedOut[0].Equal(root.Root) {
		t.Errorf("roots %v, %v", handedOut, err)
	}
	if known := f.addresses("token", nil); len(known) != 3 {
		t.Fatalf("addresses %v, want three pods", known)
	}
	f.checkCertificates() // by the root alone, so intermediates have come along
}
