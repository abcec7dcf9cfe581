package proxy

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
)

// aborted is a stream that tells why it was ended.
type aborted chan error

func (a aborted) Abort(cause error) { a <- cause }

// living is a connection of a pod of its own.
func living(t *testing.T) (*Proxy, *Connection) {
	t.Helper()
	p := New(Config{Identities: identity.NewStore(nil), MaxConnsPerPod: 4, Recorder: telemetry.New(telemetry.Options{})})
	p.draining = true // nothing is accepted here
	p.Add(sockets.Pod{UID: "uid"}, sockets.Listeners{})
	c := p.newConnection(p.localPod("uid"), netip.AddrPortFrom(clientAddr, 40000), telemetry.Outbound)
	p.conns.Add(c)
	t.Cleanup(func() {
		p.end(c)
		p.closePods()
	})
	return p, c
}

// Whatever ends a connection ends what it waits for, and then the stream that
// carries it: also if it comes before the one has taken the place of the other,
// or when that has given it up again.
func TestConnectionIsEnded(t *testing.T) {
	enough := errors.New("enough")
	for name, end := range map[string]struct {
		end   func(p *Proxy, c *Connection)
		cause error
	}{
		"denied":       {func(_ *Proxy, c *Connection) { c.Deny(policy.Decision{}) }, denied{}},
		"pod is gone":  {func(p *Proxy, _ *Connection) { p.Remove("uid", true) }, context.Canceled},
		"all pods are": {func(p *Proxy, _ *Connection) { p.closePods() }, context.Canceled},
		"given up":     {func(_ *Proxy, c *Connection) { c.cancel(enough) }, enough},
	} {
		t.Run(name, func(t *testing.T) {
			t.Run("waiting", func(t *testing.T) {
				p, c := living(t)
				end.end(p, c)
				<-c.context().Done()
				if !errors.Is(c.endCause(), end.cause) {
					t.Errorf("ended by %v", c.endCause())
				}
			})
			t.Run("carried", func(t *testing.T) {
				p, c := living(t)
				waited, stream := c.context(), make(aborted, 2)
				c.carriedBy(stream)
				if waited.Err() == nil {
					t.Error("there is still a context, for nobody")
				}
				if c.endCause() != nil || len(stream) > 0 {
					t.Errorf("ended by %v", c.endCause())
				}
				end.end(p, c)
				if cause := <-stream; !errors.Is(cause, end.cause) {
					t.Errorf("the stream is ended by %v", cause)
				}
				if !errors.Is(c.endCause(), end.cause) {
					t.Errorf("ended by %v", c.endCause())
				}
				c.wait() // refused meanwhile
				<-c.context().Done()
			})
			t.Run("before it is carried", func(t *testing.T) {
				p, c := living(t)
				end.end(p, c)
				stream := make(aborted, 2)
				c.carriedBy(stream)
				if cause := <-stream; !errors.Is(cause, end.cause) {
					t.Errorf("the stream is ended by %v", cause)
				}
			})
		})
	}
}

// The first reason stays, and what has ended holds nothing.
func TestConnectionEndsOnce(t *testing.T) {
	first, second := errors.New("first"), errors.New("second")
	_, c := living(t)
	stream := make(aborted, 2)
	c.carriedBy(stream)
	c.cancel(first)
	c.cancel(second)
	if cause := <-stream; cause != first || c.endCause() != first { //nolint:errorlint // it is passed on as it is
		t.Errorf("ended by %v, the stream by %v", c.endCause(), cause)
	}
	c.forgetEnder()
	c.cancel(second)
	if len(stream) > 0 || c.ender != nil {
		t.Error("the stream is still there, or was ended again")
	}
	if cause := context.Cause(c.context()); cause != first { //nolint:errorlint // it is passed on as it is
		t.Errorf("what still asks for it sees %v", cause)
	}
}

// What still decides about the requests of a connection that has ended waits for
// nothing, and asks nobody, while its pod lives.
func TestConnectionHasEnded(t *testing.T) {
	for name, carried := range map[string]bool{"waiting": false, "carried": true} {
		t.Run(name, func(t *testing.T) {
			_, c := living(t)
			if carried {
				c.carriedBy(make(aborted, 2))
			}
			c.forgetEnder()
			if err := c.context().Err(); !errors.Is(err, context.Canceled) {
				t.Errorf("its context: %v", err)
			}
			if err := c.pod.ctx.Err(); err != nil {
				t.Errorf("the pod's context: %v", err)
			}
			if cause := c.endCause(); cause != nil {
				t.Errorf("ended by %v", cause)
			}
		})
	}
}

// Pods end while others have all the connections that a node may have: these are
// looked at, and not copied.
func TestOthersEndCostsLittle(t *testing.T) {
	p, c := living(t)
	c.carriedBy(make(aborted, 2))
	if n := testing.AllocsPerRun(10, p.endCarried); n > 0 {
		t.Errorf("%v allocations", n)
	}
	if cause := c.endCause(); cause != nil {
		t.Errorf("ended by %v", cause)
	}
}

// Idle connections are most of what a proxy holds: these are in the allocator's
// class of 704 bytes, 8 of which are its own. The next one is 768.
func TestConnectionIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Connection{}); size > 704-8 {
		t.Errorf("%d bytes", size)
	}
}
