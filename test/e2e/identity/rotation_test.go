package identity

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// certificateLife is short, for each phase of a rotation is somewhat longer;
// half of it has to do for a restart of tacitd.
const certificateLife = 30 * time.Second

// rotationPatience is for all of a rotation, and for what is late in it.
const rotationPatience = 4*certificateLife + 3*e2e.Patience

// startCA runs the mesh under a CA that is in the directory returned.
func startCA(t *testing.T) (m *e2e.Mesh, dir string) {
	t.Helper()
	m = e2e.StartWith(t, world.Config{ControlArgs: []string{"--max-certificate-ttl=" + certificateLife.String()}}, nginx)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	return m, filepath.Join(filepath.Dir(m.NetnsDir()), "ca")
}

// issuers are those of all certificates of both nodes, with their numbers.
func issuers(t *testing.T, m *e2e.Mesh) map[string]int {
	t.Helper()
	all := map[string]int{}
	for _, node := range m.Nodes() {
		for _, held := range certificates(t, m, node.Name) {
			for _, c := range held {
				all[c.Issuer]++
			}
		}
	}
	return all
}

// forged is a certificate of the identity of the client in the trust domain
// that whoever has the CA's key may make, good for long.
func forged(t *testing.T, dir, trustDomain string) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	key := identitytest.NewKey(t)
	der, err := x509.CreateCertificate(rand.Reader, identitytest.Template(t, "spiffe://"+trustDomain+"/ns/mesh/sa/client"), pair.Leaf, key.Public(), pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// show presents a certificate to the server's proxy, and returns what that
// says to it: nil if it goes on to speak HTTP/2. What is said must arrive, even to
// those who speak before they listen.
func show(t *testing.T, m *e2e.Mesh, certificate tls.Certificate) error {
	t.Helper()
	tcp, err := m.Pod("outside/plain").Dial(m.Context(), serverTunnels)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcp.Close() }()
	if err := tcp.SetDeadline(time.Now().Add(e2e.Patience)); err != nil {
		t.Fatal(err)
	}
	c := tls.Client(tcp, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}})
	if err := c.HandshakeContext(m.Context()); err != nil {
		return err
	}
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		t.Errorf("a request met %v in the place of a refusal", err)
	}
	if _, err = c.Read(make([]byte, 1)); err == nil {
		return nil
	}
	if _, end := tcp.Read(make([]byte, 1)); !errors.Is(end, io.EOF) {
		t.Errorf("after the refusal, %v: %v; want it to end in order", err, end)
	}
	return err
}

// bringRoots copies the CA's roots to nodes, as whoever runs a mesh without
// Kubernetes does in the first phase.
func bringRoots(t *testing.T, m *e2e.Mesh, dir string, nodes ...string) {
	t.Helper()
	roots, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range nodes {
		file := filepath.Join(filepath.Dir(m.Node(name).AdminSocket()), "ca.crt")
		if err := errors.Join(os.WriteFile(file+".new", roots, 0o644), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
	}
}

func restartControl(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	if err := errors.Join(m.Control().Kill(), m.StartControl(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// Nobody notices that the root is replaced, whatever the command or tacitd is
// interrupted by; when it is done, what the old one signed is refused.
func TestRootRotation(t *testing.T) {
	m, dir := startCA(t)
	_, before, err := ca.ReadStatus(dir)
	if err != nil {
		t.Fatal(err)
	}
	stolen := forged(t, dir, "cluster.local")
	if err := show(t, m, stolen); err != nil {
		t.Fatalf("a certificate of the present root: %v", err)
	}
	traffic := everyWay(t, m)
	patience, cancel := context.WithTimeout(t.Context(), rotationPatience)
	defer cancel()
	tacit := func(args ...string) (string, error) {
		text, err := m.Node("a").Command(patience, "/run/tacit/bin/tacit", append([]string{"ca", "rotate", "--ca-dir", dir}, args...)...).CombinedOutput()
		return string(text), err
	}
	if text, err := tacit("--dry-run"); err != nil || !strings.Contains(text, "Nothing is changed") || !strings.Contains(text, before.Signer.Name) {
		t.Fatalf("%s: %v", text, err)
	}
	if text, err := tacit("--no-wait"); err != nil || !strings.Contains(text, "distribute") {
		t.Fatalf("%s: %v", text, err)
	}
	bringRoots(t, m, dir, "a")
	type outcome struct {
		text string
		err  error
	}
	watched := make(chan outcome, 1)
	go func() {
		text, err := tacit()
		watched <- outcome{text, err}
	}()
	restartControl(t, m)
	eventually := func(what string, check func() error) {
		t.Helper()
		if err := world.Poll(patience, check); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	eventually("node b holds up the rotation", func() error {
		_, s, err := ca.ReadStatus(dir)
		switch {
		case err != nil:
			return err
		case s.Signer != before.Signer:
			t.Fatal("the new root signs though node b does not have it")
		case s.Rotation.Nodes == nil || len(s.Rotation.Nodes.Behind) != 1 || s.Rotation.Nodes.Behind[0].Node != "b" || time.Now().Before(s.Rotation.Until):
			return fmt.Errorf("until %v, nodes %+v", s.Rotation.Until, s.Rotation.Nodes)
		}
		return nil
	})
	bringRoots(t, m, dir, "b")
	eventually("the new root signs", func() error {
		_, s, err := ca.ReadStatus(dir)
		if err == nil && s.Signer == before.Signer {
			err = errors.New("the old one does")
		}
		return err
	})
	restartControl(t, m)
	eventually("tacit certs shows the new root alone", func() error {
		if all := issuers(t, m); all[before.Signer.Name] > 0 || len(all) != 1 {
			return fmt.Errorf("issuers %v", all)
		}
		return nil
	})
	if err := show(t, m, stolen); err != nil {
		t.Errorf("the old root is not accepted any more while certificates of it may be valid: %v", err)
	}
	seen := <-watched
	for _, want := range []string{"A rotation is under way", "distribute", "not yet b: its proxy knows tacitd by the old root alone", "overlap", "retire", "nobody knows the old root any more"} {
		if seen.err != nil || !strings.Contains(seen.text, want) {
			t.Fatalf("the command says %q, %v; want %q", seen.text, seen.err, want)
		}
	}
	traffic.finish()
	if err := show(t, m, stolen); err == nil || !strings.Contains(err.Error(), "remote error: tls") {
		t.Errorf("a certificate of the old root: %v, want a refusal", err)
	}
	if _, now, err := ca.ReadStatus(dir); err != nil || len(now.Roots) != 1 || now.Signer.Name != now.Rotation.To || now.Rotation.From != before.Signer.Name {
		t.Errorf("%+v, %v", now, err)
	}
}
