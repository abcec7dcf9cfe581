package hbone

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

func TestRoundTrip(t *testing.T) {
	w := newWorld(t, forward(application(t, echo)))
	app, done := w.connect("10.0.0.1:80")
	app.SetDeadline(time.Now().Add(patience))
	for _, size := range []int{1, 100, 5000, 70000, 1 << 20} {
		sent := make([]byte, size)
		rand.Read(sent)
		go app.Write(sent)
		got := make([]byte, size)
		if _, err := io.ReadFull(app, got); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if !bytes.Equal(sent, got) {
			t.Fatalf("%d bytes came back changed", size)
		}
	}
	app.CloseWrite()
	if rest, err := io.ReadAll(app); err != nil || len(rest) > 0 {
		t.Fatalf("after FIN: %d bytes, %v", len(rest), err)
	}
	r := within(t, done)
	if r.End != relay.Finished || r.Err != nil || r.Sent != r.Received || r.Sent != 1+100+5000+70000+1<<20 {
		t.Fatalf("result %+v", r)
	}
}

func TestManyStreamsByteExact(t *testing.T) {
	w := newWorld(t, forward(application(t, echo)))
	var all sync.WaitGroup
	for range 150 {
		all.Go(func() {
			app, done := w.connect("10.0.0.1:80")
			app.SetDeadline(time.Now().Add(patience))
			exchange(t, app, 300_000)
			if r := within(t, done); r.End != relay.Finished {
				t.Errorf("result %+v", r)
			}
		})
	}
	all.Wait()
	if n := w.dialed(); n != 2 {
		t.Errorf("%d connections for 150 streams, want 2", n)
	}
}

// exchange sends random bytes to an echo and checks what comes back.
func exchange(t testing.TB, app *net.TCPConn, size int) {
	sent := make([]byte, size)
	rand.Read(sent)
	go func() {
		app.Write(sent)
		app.CloseWrite()
	}()
	got, err := io.ReadAll(app)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	if !bytes.Equal(sent, got) {
		t.Errorf("%d bytes sent, %d came back or differ", len(sent), len(got))
	}
}
