package traffic

import (
	"io"
	"net"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// Who speaks first, and when, is the applications' business.
func TestSpeech(t *testing.T) {
	m := e2e.Start(t)
	for _, path := range paths(t, m) {
		run := func(what string, test func(t *testing.T, client, server *net.TCPConn)) {
			t.Run(path.name+"/"+what, func(t *testing.T) {
				client, server := path.connect(t)
				test(t, client, server)
			})
		}
		run("the server greets", func(t *testing.T, client, server *net.TCPConn) {
			say(t, server, "220 mail.example ESMTP\r\n")
			hear(t, client, "220 mail.example ESMTP\r\n")
			say(t, client, "HELO client.example\r\n")
			hear(t, server, "HELO client.example\r\n")
			say(t, server, "250 hello\r\n")
			hear(t, client, "250 hello\r\n")
			say(t, client, "QUIT\r\n")
			hear(t, server, "QUIT\r\n")
			say(t, server, "221 bye\r\n")
			finish(t, server)
			hear(t, client, "221 bye\r\n")
			hearEnd(t, client)
		})
		run("the server greets and leaves", func(t *testing.T, client, server *net.TCPConn) {
			say(t, server, "421 busy\r\n")
			finish(t, server)
			hear(t, client, "421 busy\r\n")
			hearEnd(t, client)
		})
		run("the client sends one byte and waits", func(t *testing.T, client, server *net.TCPConn) {
			say(t, client, "?")
			hear(t, server, "?")
			say(t, server, "!")
			hear(t, client, "!")
		})
		run("nobody speaks, then both", func(t *testing.T, client, server *net.TCPConn) {
			// That others come and go meanwhile is the only clock here.
			for range 20 {
				other, theirs := path.connect(t)
				say(t, other, "what time is it?")
				finish(t, other)
				if text, err := io.ReadAll(theirs); err != nil || string(text) != "what time is it?" {
					t.Fatalf("%q, %v", text, err)
				}
				finish(t, theirs)
				hearEnd(t, other)
			}
			say(t, client, "after you")
			say(t, server, "no, after you")
			hear(t, client, "no, after you")
			hear(t, server, "after you")
		})
	}
}
