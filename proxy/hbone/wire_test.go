package hbone

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
)

// The reading goroutine writes alerts and answers to key updates whenever the
// peer gives it a reason, beside whoever writes frames.
func TestWireIsWrittenByTwo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	far, err := l.Accept()
	must(t, err)
	defer far.Close()
	w, err := NewWire(near.(*net.TCPConn))
	must(t, err)

	const rounds, size = 300, 5000
	record := func(b byte) []byte { return bytes.Repeat([]byte{b}, size) }
	var writers sync.WaitGroup
	writers.Go(func() {
		for range rounds {
			w.cork()
			for range 20 {
				w.Write(record('a'))
			}
			w.uncork()
		}
	})
	writers.Go(func() {
		for range rounds {
			w.Write(record('b'))
		}
	})
	go func() {
		writers.Wait()
		w.Close()
	}()
	got := record(0)
	for n := range 21 * rounds {
		if _, err := io.ReadFull(far, got); err != nil {
			t.Fatalf("after %d records: %v", n, err)
		}
		if !bytes.Equal(got, record(got[0])) {
			t.Fatalf("record %d is of both", n)
		}
	}
}
