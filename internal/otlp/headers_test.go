package otlp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/internal/otlp/otlptest"
)

// listenTLS is a listener of 127.0.0.1 with TLS, and a file of what it is known by.
func listenTLS(t *testing.T) (l net.Listener, roots string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l, write(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// A collector that is known by roots of ours gets the headers that it wants, and
// new ones once the file has been replaced.
func TestHeadersArrive(t *testing.T) {
	listener, roots := listenTLS(t)
	seen := make(chan []string, 2)
	otlptest.Start(t, listener, func(ctx context.Context) error {
		header, _ := metadata.FromIncomingContext(ctx)
		seen <- append(header.Get("authorization"), header.Get("x-scope")...)
		return nil
	})
	file := write(t, "# whose it is\nAuthorization: Bearer one two\nx-scope:team\n")
	e, err := New(Config{Endpoint: "https://" + listener.Addr().String(), Roots: roots, Headers: file, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	run(t, e)
	for _, want := range []string{"Bearer one two,team", "Bearer three"} {
		e.Span("a", named("a"), &trace.Span{})
		select {
		case got := <-seen:
			if strings.Join(got, ",") != want {
				t.Errorf("the collector is told %q, want %q", got, want)
			}
		case <-t.Context().Done():
			t.Fatal("nothing arrives")
		}
		if err := os.WriteFile(file, []byte("authorization: Bearer three"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What is wrong with headers is said without telling them, keeps nobody from
// starting and is never sent; and they never go out in clear.
func TestHeadersAreRefused(t *testing.T) {
	const secret = "5ecret"
	for name, text := range map[string]string{
		"empty": "# none\n", "no value": "authorization\n", "gRPC's own": "grpc-timeout: " + secret, "binary": "x-bin: " + secret,
		"no name": ": " + secret, "space in the name": "a b: " + secret, "not ASCII": "authorization: " + secret + "é", "too long": "a: " + strings.Repeat(secret, maxHeaders),
	} {
		refused(t, name, write(t, text), secret)
	}
	refused(t, "no file", filepath.Join(t.TempDir(), "none"), secret)
	for endpoint, want := range map[string]string{"http://127.0.0.1:1": "sent in clear", "": "no effect without --otlp", "https://127.0.0.1:1": ""} {
		if err := (&Flags{endpoint: endpoint, headers: "file"}).Check(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("to %q: %v, want %q", endpoint, err, want)
		}
	}
}

func refused(t *testing.T, name, file, secret string) {
	t.Helper()
	core, told := observer.New(zap.WarnLevel)
	e, err := New(Config{Endpoint: "https://127.0.0.1:1", Headers: file, Log: zap.New(core)})
	if err != nil {
		t.Fatalf("%s: it does not start: %v", name, err)
	}
	if err := e.conn.Close(); err != nil {
		t.Error(err)
	}
	said := ""
	for _, entry := range told.All() {
		said += fmt.Sprint(entry.Message, entry.ContextMap())
	}
	if !strings.Contains(said, "headers for the OTLP collector: ") || strings.Contains(said, secret) {
		t.Errorf("%s: the log has %q", name, said)
	}
	sent, err := headers{file}.GetRequestMetadata(t.Context())
	if len(sent) > 0 || status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), secret) {
		t.Errorf("%s: %d headers are sent, error %v", name, len(sent), err)
	}
}

// Who starts before the files of roots and headers are there sends once they are.
func TestFilesComeLater(t *testing.T) {
	listener, from := listenTLS(t)
	collector := otlptest.Start(t, listener, func(context.Context) error { return nil })
	dir := t.TempDir()
	roots, headers := filepath.Join(dir, "roots"), filepath.Join(dir, "headers")
	core, told := observer.New(zap.WarnLevel)
	e, err := New(Config{Endpoint: "https://" + listener.Addr().String(), Roots: roots, Headers: headers, Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	if n := told.Len(); n != 2 {
		t.Errorf("the log has %d warnings, want one for each file", n)
	}
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]string{roots: string(text), headers: "x-scope: team"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, e)
	e.Span("a", named("a"), &trace.Span{})
	collector.Spans(t, func(s []otlptest.Span) bool { return len(s) == 1 })
}
