package handoff

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/redirect/netns"
)

// freshNamespace is a network namespace of nobody.
func freshNamespace(t *testing.T) *netns.NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	opened := make(chan *netns.NS, 1)
	go func() { // its thread ends with it
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		ns, err := netns.Open(netns.Own)
		if err != nil {
			t.Error(err)
		}
		opened <- ns
	}()
	ns := <-opened
	if ns == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// A kept pod is served by what a proxy has of it, whichever comes first, and by
// nobody until then. Its namespace is that of the listeners.
func TestKeptPods(t *testing.T) {
	for name, offerFirst := range map[string]bool{"the proxy first": true, "the pod first": false} {
		t.Run(name, func(t *testing.T) {
			s, ns := New(Config{}), freshNamespace(t)
			fds, err := listenAll(ns)
			if err != nil {
				t.Fatal(err)
			}
			if offerFirst {
				s.offers["u1"] = fds
			}
			s.Keep("u1")
			if s.Missing("u1") == offerFirst {
				t.Errorf("missing: %v", s.Missing("u1"))
			}
			if !offerFirst && !s.adopt(s.pods["u1"], fds) {
				t.Fatal("the proxy's listeners are not taken")
			}
			if e := s.pods["u1"]; s.Missing("u1") || e.ns == nil || e.ns.ID() != ns.ID() {
				t.Errorf("the pod is %+v", e)
			}

			// Who it is comes later, with the very namespace: nothing is closed.
			if err := s.Add(Pod{UID: "u1", Name: "p1"}, ns); err != nil {
				t.Fatal(err)
			}
			if e := s.pods["u1"]; e.kept || e.Name != "p1" || e.listeners[0] != fds[0] {
				t.Errorf("once it is known the pod is %+v", e)
			}
			s.Keep("u1")
			if s.pods["u1"].kept {
				t.Error("what is known is forgotten")
			}
			s.Remove("u1", false)
			if !s.Missing("u1") {
				t.Error("a pod that was removed is still there")
			}
		})
	}
}

// While nobody says which pods there are, those that a proxy has are kept,
// whether its offer has come before or comes after; once all have been named,
// the others are removed. The connections of those that have not ended live on.
func TestOfferedPods(t *testing.T) {
	s, ns := New(Config{}), freshNamespace(t)
	earlier, err := listenAll(ns)
	if err != nil {
		t.Fatal(err)
	}
	s.offers["earlier"] = earlier
	left := freshNamespace(t)
	s.KeepOffered(func(ns *netns.NS) bool { return ns.ID() != left.ID() })
	p := &proxy{news: map[string]bool{}, wake: make(chan struct{}, 1)}
	s.proxies[p] = struct{}{}
	added := freshNamespace(t)
	for uid, ns := range map[string]*netns.NS{"later": freshNamespace(t), "left": left, "named": freshNamespace(t), "added": added} {
		fds, err := listenAll(ns)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.takeOffer(p, uid, fds); err != nil {
			t.Fatal(err)
		}
	}
	for _, uid := range []string{"earlier", "later", "left", "named", "added"} {
		if s.Missing(uid) {
			t.Errorf("%s is not kept", uid)
		}
	}
	s.Keep("named")
	if err := s.Add(Pod{UID: "added", Name: "p"}, added); err != nil {
		t.Fatal(err)
	}
	s.Synced()
	for uid, removed := range map[string]bool{"earlier": true, "later": true, "left": true, "named": false, "added": false} {
		if s.Missing(uid) != removed {
			t.Errorf("once all have been named, %s is removed: %v", uid, !removed)
		}
		if gone, ok := p.news[uid]; removed && !(ok && gone == (uid != "left")) {
			t.Errorf("of the end of %s the proxy hears %v, %v", uid, gone, ok)
		}
	}
	s.KeepOffered(func(*netns.NS) bool { return true }) // no more: everybody has been named
	fds, err := listenAll(ns)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.takeOffer(p, "latest", fds); err != nil || !s.Missing("latest") {
		t.Errorf("an offer of a pod that nobody has named: %v", err)
	}
	s.closeAll()
}

// A pod that cannot get listeners yet, as the proxy that has them has not come
// back, is still there for another proxy: one that drains keeps its connections.
func TestWhatCannotBeAddedIsKept(t *testing.T) {
	s, ns := start(t, Config{ProxyUID: os.Geteuid()}), freshNamespace(t)
	fds, err := listenAll(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer protocol.CloseAll(fds)
	c := dial(t, s)
	for _, m := range []*protocol.FromProxy{
		{Message: &protocol.FromProxy_Hello{Hello: &protocol.Hello{Version: protocol.Version, Draining: true}}},
		{Message: &protocol.FromProxy_Offered{Offered: &protocol.Offered{}}},
		{Message: &protocol.FromProxy_Want{Want: &protocol.Want{Uid: "none", Family: protocol.Family_FAMILY_IPV4, Count: 1}}},
	} {
		if err := c.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	kept := false
	for synced := false; !synced; {
		m, fds, err := c.ReceiveFromAgent()
		if err != nil {
			t.Fatal(err)
		}
		protocol.CloseAll(fds)
		switch x := m.Message.(type) {
		case *protocol.FromAgent_Sockets: // its offer has been read by now
			if err := s.Add(Pod{UID: "u1", Name: "p1"}, ns); !errors.Is(err, unix.EADDRINUSE) {
				t.Fatalf("added beside the proxy's listeners: %v", err)
			}
			s.Synced()
		case *protocol.FromAgent_Keep:
			kept = kept || x.Keep.GetUid() == "u1"
		case *protocol.FromAgent_Synced:
			synced = true
		}
	}
	if !kept {
		t.Error("the proxy has been told of all pods but this one, and ends its connections")
	}
}

// Another namespace under the UID of a kept pod is another pod: what the proxy
// had of the first does not serve it.
func TestKeptPodIsAnother(t *testing.T) {
	s, first, second := New(Config{}), freshNamespace(t), freshNamespace(t)
	fds, err := listenAll(first)
	if err != nil {
		t.Fatal(err)
	}
	s.offers["u1"] = fds
	s.Keep("u1")
	if err := s.Add(Pod{UID: "u1", Name: "p1"}, second); err != nil {
		t.Fatal(err)
	}
	e := s.pods["u1"]
	if id, err := netns.OfSocket(e.listeners[0]); err != nil || id != second.ID() {
		t.Errorf("its listeners are in %v, want %v: %v", id, second.ID(), err)
	}
	s.Remove("u1", true)
}

// Listeners in the node's own namespace are no pod's, whoever offers them.
func TestKeptPodOfTheNode(t *testing.T) {
	s := New(Config{})
	own, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fds := []int{own}
	s.offers["u1"] = fds
	s.Keep("u1")
	if !s.Missing("u1") || s.pods["u1"].ns != nil {
		t.Errorf("the pod is %+v", s.pods["u1"])
	}
	if _, err := unix.FcntlInt(uintptr(own), unix.F_GETFD, 0); err == nil {
		t.Error("what was refused is still open")
		protocol.CloseAll(fds)
	}
}
