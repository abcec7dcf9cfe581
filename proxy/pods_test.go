package proxy

import (
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/proxy/sockets"
)

// A pod that is captured, not captured, and captured again may have
// connections of each time. They live as long as they like, and then it is
// forgotten.
func TestConnectionsOutliveCapture(t *testing.T) {
	for _, order := range [][]int{{0, 1}, {1, 0}} {
		synctest.Test(t, func(t *testing.T) {
			p := New(Config{Identities: identity.NewStore(nil), MaxConnsPerPod: 4})
			p.draining = true // nothing is accepted here
			facts := sockets.Pod{UID: "uid", Namespace: "mesh", Name: "server"}
			var times []*pod
			for range 2 {
				p.Add(facts, sockets.Listeners{})
				captured := p.localPod("uid")
				captured.live.Add(1)
				times = append(times, captured)
				p.Remove("uid", false)
			}
			times[order[0]].live.Done()
			synctest.Wait()
			if times[order[1]].ctx.Err() != nil {
				t.Errorf("order %v: the end of one connection has ended another", order)
			}
			times[order[1]].live.Done()
			synctest.Wait()
			if times[0].ctx.Err() == nil || times[1].ctx.Err() == nil || len(p.leaving) != 0 {
				t.Errorf("order %v: the pod is not forgotten", order)
			}
		})
	}
}

// Facts may change under a live pod, and its connections stay.
func TestFactsChangeUnderLiveConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Identities: identity.NewStore(nil), MaxConnsPerPod: 4})
		p.draining = true
		facts := sockets.Pod{UID: "uid", Addresses: []netip.Addr{arrived4}}
		p.Add(facts, sockets.Listeners{})
		before := p.localPod("uid")
		before.live.Add(1)
		facts.Addresses = append(facts.Addresses, arrived6)
		p.Add(facts, sockets.Listeners{})
		after := p.localPod("uid")
		if !after.has(arrived6) || before.share != after.share || before.budget != after.budget {
			t.Error("want the new address, and the share and budget of before")
		}
		before.live.Done()
		synctest.Wait()
		if after.ctx.Err() != nil {
			t.Error("the pod's connections have ended with the last of before")
		}
		p.Remove("uid", true)
		synctest.Wait()
		if after.ctx.Err() == nil {
			t.Error("the connections of a pod that is gone live on")
		}
	})
}

func TestHandshakesAreBounded(t *testing.T) {
	h := newShare(1).handshakes
	begun := 0
	for h.Take(arrived4, 1) {
		begun++
	}
	if begun != maxHandshakesFromSource {
		t.Errorf("%d from one source, want %d", begun, maxHandshakesFromSource)
	}
	for a := arrived4.Next(); h.Take(a, 1) && begun < 2*maxHandshakes; a = a.Next() {
		begun++
	}
	if begun != maxHandshakes {
		t.Errorf("%d from all, want %d", begun, maxHandshakes)
	}
	h.Give(arrived4, 1)
	if !h.Take(arrived4, 1) {
		t.Error("an ended one still counts")
	}
	for range maxHandshakesFromSource {
		h.Give(arrived4, 1)
	}
	for a := arrived4.Next(); h.Taken() > 0; a = a.Next() {
		h.Give(a, 1)
	}
}
