package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var errEnough = errors.New("enough")

// A meter that has had enough ends the relay, to a buffer of either direction,
// also one that is told only while bytes go through the kernel.
func TestMeter(t *testing.T) {
	const enough = 1 << 20
	for _, test := range []struct{ swap, later bool }{{false, false}, {true, false}, {false, true}} {
		t.Run(fmt.Sprintf("%+v", test), func(t *testing.T) {
			client, near := tcpPair(t)
			far, server := tcpPair(t)
			counts, done := new(Counts), make(chan Result, 1)
			var passed atomic.Int64
			tell := func() {
				counts.Tell(func(n int) error {
					if passed.Add(int64(n)) >= enough {
						return errEnough
					}
					return nil
				})
			}
			if !test.later {
				tell()
			}
			go func() { done <- Copy(t.Context(), near, far, counts) }()
			from, to := client, server
			if test.swap {
				from, to = to, from
			}
			for _, c := range []*net.TCPConn{from, to} {
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			}
			go func() {
				for err := error(nil); err == nil; {
					_, err = from.Write(make([]byte, 1<<18))
				}
			}()
			before := int64(0)
			if test.later {
				n, _ := io.CopyN(io.Discard, to, 32<<20)
				before = n
				tell()
			}
			_, err := io.Copy(io.Discard, to)
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the receiver saw %v", err)
			}
			r := within(t, done)
			if !errors.Is(r.Err, errEnough) || before == 0 && r.Sent+r.Received >= enough+LargeSize {
				t.Errorf("%+v", r)
			}
			if n := passed.Load(); n < enough || n >= enough+pipeSize {
				t.Errorf("%d bytes passed", n)
			}
		})
	}
}
