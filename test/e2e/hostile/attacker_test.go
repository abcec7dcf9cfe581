// Package hostile attacks a running mesh from inside its pods: with no
// certificate, with bad ones, and with a good one.
package hostile

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

func TestMain(m *testing.M) { e2e.Main(m) }

// What the attacks aim at, on node b, and who they claim to be.
const (
	victim      = "198.18.2.10"
	victimHBONE = victim + ":15008"
	client      = "spiffe://cluster.local/ns/mesh/sa/client"
)

// proxyMark is what the proxy marks its own packets with, so that capture
// leaves them alone. Root in a pod can do the same.
const proxyMark = 0x539

// start runs the mesh with echo servers, and the mesh's own authority:
// attackers may be workloads, or have stolen the certificate of one.
func start(t *testing.T, manifests ...string) (*e2e.Mesh, *identitytest.CA) {
	t.Helper()
	return startWith(t, world.Config{}, manifests...)
}

func startWith(t *testing.T, config world.Config, manifests ...string) (*e2e.Mesh, *identitytest.CA) {
	t.Helper()
	m := e2e.StartWith(t, config, manifests...)
	for _, pod := range []string{"mesh/server", "mesh/server2", "mesh/near"} {
		m.Serve(pod, ":8080", e2e.Echo)
	}
	read := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join(m.Dir(), "ca", name))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(content)
		if block == nil {
			t.Fatalf("%s is not PEM", name)
		}
		return block.Bytes
	}
	key, err := x509.ParsePKCS8PrivateKey(read("ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(read("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	return m, &identitytest.CA{Root: root, Key: key.(crypto.Signer)}
}

// certificate signs a template, with a new key.
func certificate(t *testing.T, ca *identitytest.CA, template *x509.Certificate) tls.Certificate {
	key := identitytest.NewKey(t)
	return tls.Certificate{Certificate: [][]byte{ca.Sign(t, template, key.Public()).Raw}, PrivateKey: key}
}

// dial connects from a pod past its own capture. The connection is closed at
// the end of the test.
func dial(t *testing.T, m *e2e.Mesh, pod, address string) *net.TCPConn {
	t.Helper()
	c, err := tryDial(m, pod, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func tryDial(m *e2e.Mesh, pod, address string) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: e2e.Patience, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, proxyMark) }); e != nil {
			return e
		}
		return err
	}}
	var c net.Conn
	err := m.Pod(pod).Do(func() (err error) {
		c, err = d.Dial("tcp", address)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(e2e.Patience))
}

func deadline() time.Time { return time.Now().Add(e2e.Patience) }

// clientTLS is what a well-behaved client would use.
func clientTLS(certificates ...tls.Certificate) *tls.Config {
	return &tls.Config{
		Certificates: certificates, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // an attacker does not mind whom it attacks
		MinVersion:         tls.VersionTLS12,
	}
}

// attacker is an HTTP/2 client with a good certificate that sends what it likes.
type attacker struct {
	*http2.Framer
	*tls.Conn
	encoder *hpack.Encoder
	block   bytes.Buffer
}

// attack completes the handshake as the identity and sends the preface.
func attack(t *testing.T, m *e2e.Mesh, ca *identitytest.CA, pod, address string) *attacker {
	t.Helper()
	config := clientTLS(certificate(t, ca, identitytest.Template(t, client)))
	a := newAttacker(tls.Client(dial(t, m, pod, address), config))
	if err := a.Handshake(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(a.Conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := a.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return a
}

func newAttacker(c *tls.Conn) *attacker {
	a := &attacker{Framer: http2.NewFramer(c, c), Conn: c}
	a.AllowIllegalWrites = true
	a.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	a.encoder = hpack.NewEncoder(&a.block)
	return a
}

// request sends header fields, given as names and values, in order.
func (a *attacker) request(id uint32, fields ...string) error {
	a.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = a.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	block := a.block.Bytes()
	part := block[:min(len(block), 16<<10)]
	block = block[len(part):]
	err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: part, EndHeaders: len(block) == 0})
	for err == nil && len(block) > 0 {
		part = block[:min(len(block), 16<<10)]
		block = block[len(part):]
		err = a.WriteContinuation(id, len(block) == 0, part)
	}
	return err
}

// connect asks for an address.
func (a *attacker) connect(id uint32, authority string, more ...string) error {
	return a.request(id, append([]string{":method", "CONNECT", ":authority", authority}, more...)...)
}

// answer reads up to the status of a stream, or why there is none.
func (a *attacker) answer(id uint32) string {
	for {
		f, err := a.ReadFrame()
		if err != nil {
			return fmt.Sprintf("no frame: %v", err)
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				return f.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return f.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			return "GOAWAY " + f.ErrCode.String()
		}
	}
}

// end reads until the peer ends the connection, and returns the code of its
// GOAWAY.
func (a *attacker) end() (code http2.ErrCode, err error) {
	code = http2.ErrCodeNo
	for {
		f, err := a.ReadFrame()
		if err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				return code, fmt.Errorf("the connection was not ended: %w", err)
			}
			return code, nil
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			code = g.ErrCode
		}
	}
}

// bystander holds a conversation from mesh/twin to the victim, which no attack
// may disturb, and makes new connections. The returned function asks how it went.
func bystander(t *testing.T, m *e2e.Mesh) (check func()) {
	t.Helper()
	c, err := m.Pod("mesh/twin").Dial(m.Context(), victim+":8080")
	if err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- converse(c, stop) }()
	return func() {
		t.Helper()
		if _, err := m.Call("mesh/twin", victim+":8080"); err != nil {
			t.Errorf("a bystander's new connection: %v", err)
		}
		close(stop)
		if err := <-ended; err != nil {
			t.Errorf("a bystander's conversation: %v", err)
		}
		_ = c.Close()
	}
}

// converse sends lines to an echo server until it is told to stop, and wants
// each of them back.
func converse(c *net.TCPConn, stop <-chan struct{}) error {
	name := make([]byte, 1)
	for name[0] != '\n' { // the first line is the server's own
		if _, err := c.Read(name); err != nil {
			return err
		}
	}
	line, got := []byte(strings.Repeat("bystander ", 100)), make([]byte, 1000)
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case <-stop:
			return nil
		case <-pace.C:
		}
		_ = c.SetDeadline(time.Now().Add(e2e.Patience))
		if _, err := c.Write(line); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if !bytes.Equal(got, line) {
			return fmt.Errorf("the echo is %.40q", got)
		}
	}
}

// usage is what the proxy of a node holds.
type usage struct{ memory, descriptors int }

func usageOf(t *testing.T, m *e2e.Mesh, node string) (u usage) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", m.Node(node).Proxy().PID())
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(rest, &u.memory); err != nil {
		t.Fatal(err)
	}
	u.memory <<= 10
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	u.descriptors = len(fds)
	return u
}

// rises reads a metric now and returns a check that it has grown.
func rises(t *testing.T, m *e2e.Mesh, node, name string, labels ...string) (check func()) {
	t.Helper()
	before := m.Metric(node, name, labels...)
	return func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 3*e2e.Patience) // an unanswered PING takes 40 s
		defer cancel()
		err := world.Poll(ctx, func() error {
			if now := m.Metric(node, name, labels...); now <= before {
				return fmt.Errorf("it is %v as before", now)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s %v does not rise: %v", name, labels, err)
		}
	}
}

// logs is a check that a node's proxy logs a line, from now on, that has all
// of these texts.
func logs(t *testing.T, m *e2e.Mesh, node string, texts ...string) (check func()) {
	t.Helper()
	mark := m.Node(node).Proxy().Mark()
	return func() {
		t.Helper()
		_, err := m.Node(node).Proxy().WaitLog(m.Context(), mark, func(line string) bool {
			for _, text := range texts {
				if !strings.Contains(line, text) {
					return false
				}
			}
			return true
		})
		if err != nil {
			t.Errorf("no line in the log with %q: %v", texts, err)
		}
	}
}
