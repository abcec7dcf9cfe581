package http

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// certificate makes one for an address, and has the programs of the mesh trust it.
func certificate(t *testing.T, address string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.ParseIP(address)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", file)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// tacitd fetches the keys of an issuer over https and follows their rotation.
// While the issuer is away, requests without a token pass, and keys that were
// fetched stay.
func TestIssuerRotatesItsKeys(t *testing.T) {
	const address = "198.18.2.30"
	own := certificate(t, address)
	m := e2e.StartWith(t, world.Config{ControlArgs: []string{"--jwks-refresh", "1s"}},
		object("RequestAuthentication", "jwt", "{jwtRules: [{issuer: good.example, jwksUri: 'https://"+address+":8443/keys'}]}"))
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	first, second := newIssuer(t), newIssuer(t)
	token := func(i issuer) string {
		return i.token(t, fmt.Sprintf(`{"iss": "good.example", "sub": "ann", "exp": %d}`, time.Now().Add(time.Hour).Unix()))
	}
	clients := []*http.Client{client(t, m, "mesh/client", 1), client(t, m, "mesh/client", 2)}
	const ok, refused = 200, 401
	expect := func(what, authorization string, want int) {
		t.Helper()
		for _, c := range clients {
			m.Eventually(what, func() error {
				header := "A: b"
				if authorization != "" {
					header = "Authorization: Bearer " + authorization
				}
				if status, _, _ := call(t, c, "GET", "http://"+server+"/", header); status != want {
					return fmt.Errorf("status %d, want %d", status, want)
				}
				return nil
			})
		}
	}
	expect("no token, and no issuer", "", ok)
	expect("a token, and no issuer", token(first), refused)

	var keys atomic.Pointer[string]
	publish := func(i issuer) {
		set := i.keys(t)
		keys.Store(&set)
	}
	publish(first)
	l, err := m.Pod("outside/target").Listen(address + ":8443")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{ReadHeaderTimeout: e2e.Patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, *keys.Load())
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = web.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS12}))
	}()
	stop := func() {
		_ = web.Close()
		<-done
	}
	t.Cleanup(stop)
	expect("the first key", token(first), ok)
	expect("a key that is not published", token(second), refused)
	publish(second)
	expect("the second key", token(second), ok)
	expect("the first key, which is withdrawn", token(first), refused)

	mark := m.Control().Mark()
	stop()
	if _, err := m.Control().WaitLog(m.Context(), mark, func(line string) bool { return strings.Contains(line, "key set not fetched") }); err != nil {
		t.Fatalf("tacitd does not say that the issuer is away: %v", err)
	}
	expect("a key that was fetched, and no issuer", token(second), ok)
	expect("no token, and no issuer any more", "", ok)
}
