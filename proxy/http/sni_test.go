package http

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// hello is what a client of TLS says first.
func hello(t testing.TB, name string) []byte {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		_ = tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: name == ""}).Handshake()
		_ = client.Close()
	}()
	defer func() { _ = server.Close() }()
	header := make([]byte, 5)
	_, err := io.ReadFull(server, header)
	must(t, err)
	message := make([]byte, int(header[3])<<8|int(header[4]))
	_, err = io.ReadFull(server, message)
	must(t, err)
	return slices.Concat(header, message)
}

// split puts a handshake message into records of at most n bytes.
func split(record []byte, n int) (out []byte) {
	for part := range slices.Chunk(record[5:], n) {
		out = append(out, 22, 3, 1, byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestServerNames(t *testing.T) {
	whole := hello(t, "db.example")
	doubled := bytes.Replace(whole, []byte("db.example"), []byte("db\x00xample"), 1)
	tests := []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"name", whole, "db.example"},
		{"none", hello(t, ""), ""},
		{"in many records", split(whole, 7), "db.example"},
		{"data behind", append(slices.Clone(whole), "early"...), "db.example"},
		{"other protocol", []byte("\x16\x04\x00\x00\x05"), ""},
		{"other message", []byte("\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00"), ""},
		{"binary", []byte{0, 1, 2}, ""},
		{"binary and short", []byte{0, 0}, ""},
		{"cut off", whole[:len(whole)-1], ""},
		{"length that is none", append([]byte{22, 3, 1, 0xff, 0xff, 1}, whole...), ""},
		{"name with a NUL", doubled, ""},
		{"longer than there may be", split(slices.Concat(whole[:5], []byte{1, 0, 0xff, 0xff}, bytes.Repeat([]byte{3}, 0xffff)), 16<<10), ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, declared := range []Protocol{Undeclared, Opaque} {
				for _, slowly := range []bool{false, true} {
					gate := newGate(allowAll)
					to := proxied(t, raw(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) }), declared, gate)
					c, r := dial(t, to)
					step := len(test.bytes)
					if slowly && step < 4<<10 {
						step = 1
					}
					go func() {
						for part := range slices.Chunk(test.bytes, max(step, 1)) {
							_, _ = c.Write(part)
						}
						_ = c.CloseWrite()
					}()
					back, err := io.ReadAll(r)
					must(t, err)
					if !bytes.Equal(back, test.bytes) {
						t.Errorf("%d bytes of %d came through", len(back), len(test.bytes))
					}
					gate.mu.Lock()
					if got := strings.Join(gate.serverNames, " "); got != test.want {
						t.Errorf("%v: asked about %q, want %q", declared, got, test.want)
					}
					gate.mu.Unlock()
				}
			}
		})
	}
}

// What is denied by its name does not reach the application.
func TestServerNameIsDenied(t *testing.T) {
	gate := newGate(allowAll)
	gate.opaque = errors.New("denied")
	got := make(chan []byte, 1)
	to := proxied(t, raw(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		got <- b
	}), Undeclared, gate)
	c, r := dial(t, to)
	say(t, c, string(hello(t, "db.example")))
	if _, err := r.ReadByte(); err == nil {
		t.Error("an answer")
	}
	if b := within(t, got); len(b) > 0 {
		t.Errorf("the application got %q", b)
	}
}

func FuzzServerName(f *testing.F) {
	f.Add(hello(f, "db.example"))
	f.Add([]byte("\x16\x03\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if name, _ := parseHello(b); len(name) > 255 || strings.ContainsAny(name, "\x00\r\n ") {
			t.Errorf("%q", name)
		}
	})
}

// A greeting that is shorter than what it may be taken for is heard all the same.
func TestShortGreeting(t *testing.T) {
	to := proxied(t, raw(t, func(c *net.TCPConn) { _, _ = c.Write([]byte{0, 0}) }), Undeclared, newGate(allowAll))
	_, r := dial(t, to)
	if heard, err := io.ReadAll(r); err != nil || len(heard) != 2 {
		t.Errorf("%q, %v", heard, err)
	}
}
