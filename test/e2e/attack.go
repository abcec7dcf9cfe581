package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tacit-mesh/tacit/test/world"
	"github.com/tacit-mesh/tacit/xds/api/ca"
)

// Place is a network namespace: a node's or a pod's.
type Place interface{ Do(fn func() error) error }

// Token is that of a node's proxy.
func (m *Mesh) Token(node string) string {
	m.t.Helper()
	secret, err := os.ReadFile(filepath.Join(filepath.Dir(m.Node(node).AdminSocket()), "token"))
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(string(secret))
}

// CSR is a request for a certificate of the identity, PEM, and its key.
func (m *Mesh) CSR(id string) (string, *ecdsa.PrivateKey) {
	m.t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		m.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), key
}

// Certify asks the control plane for a certificate as a proxy does, from
// anywhere, with a token, if there is one, and a request of whomever.
func (m *Mesh) Certify(from Place, token, id, csr string) (*x509.Certificate, error) {
	m.t.Helper()
	root := filepath.Join(filepath.Dir(m.Nodes()[0].AdminSocket()), "ca.crt")
	roots, err := credentials.NewClientTLSFromFile(root, "tacitd.tacit-system.svc")
	if err != nil {
		m.t.Fatal(err)
	}
	dial := func(ctx context.Context, address string) (c net.Conn, err error) {
		err = from.Do(func() (err error) {
			c, err = new(net.Dialer).DialContext(ctx, "tcp", address)
			return err
		})
		return c, err
	}
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(world.ControlAddress.String(), "15012"),
		grpc.WithTransportCredentials(roots), grpc.WithContextDialer(dial))
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx := m.Context()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	wanted, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": id})
	if err != nil {
		m.t.Fatal(err)
	}
	answer, err := ca.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &ca.IstioCertificateRequest{Csr: csr, Metadata: wanted})
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(answer.GetCertChain()[0]))
	return x509.ParseCertificate(block.Bytes)
}

// AsUser runs fn on a thread that belongs to another user and ends with it.
func AsUser(uid int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		// The library's call would change every thread.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- fmt.Errorf("setresuid: %w", errno)
			return
		}
		done <- fn()
	}()
	return <-done
}

// Pose connects to an agent as its proxy would, and expects to be dropped
// without a word.
func Pose(socket string) error {
	c, err := net.Dial("unixpacket", socket)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetReadDeadline(time.Now().Add(Patience)); err != nil {
		return err
	}
	n, err := c.Read(make([]byte, 1))
	if n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the agent goes on: %d bytes, %w", n, err)
	}
	return nil
}
