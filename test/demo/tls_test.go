package demo

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/test/world"
)

func TestMain(m *testing.M) { world.Enter(m.Run) }

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// What is captured between two pods is judged rightly, whatever it is.
func TestCaptureTellsTLS(t *testing.T) {
	w, err := world.New(t.Context(), world.Config{Manifests: "../../deploy/demo"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	client, server := w.Pod("shop/frontend"), w.Pod("shop/web")
	config := func(version uint16) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{certificate(t)}, InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}
	}
	for _, c := range []struct {
		name   string
		port   uint16
		config *tls.Config // nil: in clear
		then   string      // written in clear after all
		want   string
	}{
		{name: "TLS 1.3", port: protocol.HBONEPort, config: config(tls.VersionTLS13)},
		{name: "TLS 1.2", port: protocol.HBONEPort, config: config(tls.VersionTLS12), want: "where only encrypted ones may be"},
		{name: "in clear", port: protocol.HBONEPort, want: "no TLS record"},
		{name: "another port", port: 8080, config: config(tls.VersionTLS13), want: "is none of port 15008"},
		{name: "clear behind TLS", port: protocol.HBONEPort, config: config(tls.VersionTLS13), then: "GET / HTTP/1.1\r\n", want: "no TLS record"},
	} {
		t.Run(c.name, func(t *testing.T) {
			capture, err := startCapture(server.Node, append(client.Addresses, server.Addresses...))
			if err != nil {
				t.Fatal(err)
			}
			defer capture.close()
			exchange(t, client, server, c.port, c.config, c.then)
			seen, err := capture.finish()
			if err != nil {
				t.Fatal(err)
			}
			summary, err := seen.checkTLS()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err == nil && (summary.group != tls.X25519MLKEM768 || summary.handshake != 2 || summary.encrypted < 4) {
				t.Errorf("summary %+v", summary)
			}
			if found := seen.without(page) != nil; found != (c.config == nil) {
				t.Errorf("the page is found in clear: %t", found)
			}
		})
	}
}

// exchange sends the page from client to server and back.
func exchange(t *testing.T, client, server *world.Pod, port uint16, config *tls.Config, then string) {
	t.Helper()
	address := netip.AddrPortFrom(server.Address(), port).String()
	l, err := server.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer func() { _ = c.Close() }()
		if config != nil {
			c = tls.Server(c, config)
		}
		_, err = io.CopyN(c, c, int64(len(page)))
		served <- err
	}()
	plain, err := client.Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	var c net.Conn = plain
	if config != nil {
		c = tls.Client(plain, config)
	}
	_, err1 := io.WriteString(c, page)
	_, err2 := io.ReadFull(c, make([]byte, len(page)))
	_, err3 := io.WriteString(plain, then)
	if err := errors.Join(err1, err2, err3, <-served); err != nil {
		t.Fatal(err)
	}
}

func FuzzServerHello(f *testing.F) {
	f.Add([]byte{helloServer, 0, 0, 40})
	f.Add(append([]byte{helloServer}, make([]byte, 60)...))
	f.Fuzz(func(t *testing.T, message []byte) {
		const shortest = 4 + 2 + 32 + 1 + 2 + 1 + 2 // without session id and extensions
		if _, _, err := readServerHello(message); err == nil && (len(message) < shortest || message[0] != helloServer) {
			t.Errorf("took % x for a ServerHello", message)
		}
	})
}
