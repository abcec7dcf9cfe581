package identity

import (
	"bufio"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// writeList puts a list of revoked certificates in the place of file.
func writeList(t *testing.T, file string, ca *x509.Certificate, key crypto.Signer, serials ...string) {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, text := range serials {
		serial, ok := new(big.Int).SetString(text, 16)
		if !ok {
			t.Fatalf("serial number %q", text)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".new", der, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// dialLive opens a connection that stays, to the echo server.
func dialLive(t *testing.T, m *e2e.Mesh) *net.TCPConn {
	t.Helper()
	c, err := m.Dial("mesh/client", server)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(e2e.Patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return c
}

func isReset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the live connection reads %d bytes, %v; want a reset", n, err)
	}
}

// What its authority has taken back is refused at once: new connections,
// live ones, and new streams on a live one, on both sides.
func TestRevocation(t *testing.T) {
	directory := t.TempDir()
	for dir := directory; dir != filepath.Clean(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(directory, "crl.pem")
	stranger := identitytest.NewCA(t)
	writeList(t, file, stranger.Root, stranger.Key)
	m := e2e.StartWith(t, world.Config{ProxyArgs: []string{"--crl=" + file}})
	m.Serve("mesh/server", ":8080", e2e.Echo)
	authority := filepath.Join(filepath.Dir(m.NetnsDir()), "ca")
	pair, err := tls.LoadX509KeyPair(filepath.Join(authority, "ca.crt"), filepath.Join(authority, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		t.Fatalf("a %T", pair.PrivateKey)
	}
	revoke := func(serials ...string) { writeList(t, file, pair.Leaf, key, serials...) }
	refused := func(pod string) {
		t.Helper()
		m.Eventually("a new connection is refused", func() error {
			if _, err := m.Call(pod, server); err == nil {
				return errors.New("it is served")
			}
			return nil
		})
	}

	t.Run("a client", func(t *testing.T) {
		c := dialLive(t, m)
		revoke(certificates(t, m, "a")["client"][0].Serial)
		isReset(t, c)
		refused("mesh/client")
		reasons := ""
		for _, d := range m.Connections("b", "denied", "mesh/client", "") {
			reasons += d.Reason + "\n"
		}
		if !strings.Contains(reasons, "denied: the client's certificate has been revoked") {
			t.Errorf("the server's node says %q", reasons)
		}
		if _, err := m.Call("mesh/near", server); err != nil {
			t.Errorf("a client that is not revoked: %v", err)
		}
	})
	t.Run("nobody any more", func(t *testing.T) {
		revoke()
		m.Eventually("the client is served", func() error {
			_, err := m.Call("mesh/client", server)
			return err
		})
	})
	t.Run("a server", func(t *testing.T) {
		c := dialLive(t, m)
		revoke(certificates(t, m, "b")["server"][0].Serial)
		isReset(t, c)
		refused("mesh/client")
	})
}
