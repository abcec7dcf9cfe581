package zds

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/zds/protocol"
	"github.com/tacit-mesh/tacit/redirect/zds/zdstest"
)

// The main thread cannot end, so it must not be the one that is given away.
func TestMain(m *testing.M) {
	runtime.LockOSThread()
	goleak.VerifyTestMain(m)
}

// recorder notes what is done to the sockets.
type recorder struct {
	mu      sync.Mutex
	calls   []string
	served  map[string]handoff.Pod
	fail    map[string]error
	missing map[string]bool // of those that are kept
	ns      map[string]netns.ID
	tried   chan string               // UID of each Add
	offered chan func(*netns.NS) bool // as KeepOffered is told
}

func (r *recorder) note(format string, args ...any) {
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}

func (r *recorder) Add(p handoff.Pod, ns *netns.NS) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.tried <- p.UID:
	default:
	}
	if err := r.fail[p.UID]; err != nil {
		return err
	}
	if err := ns.Do(func() error { return nil }); err != nil {
		return err // it must be open
	}
	r.note("add %s", p.UID)
	r.served[p.UID], r.ns[p.UID] = p, ns.ID()
	return nil
}

func (r *recorder) Keep(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note("keep %s", uid)
}

func (r *recorder) KeepOffered(ended func(*netns.NS) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.offered <- ended:
	default:
	}
	r.note("keep what is offered")
}

func (r *recorder) Missing(uid string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.missing[uid]
}

func (r *recorder) miss(uid string, missing bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.missing[uid] = missing
}

func (r *recorder) Remove(uid string, gone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note("remove %s, gone %v", uid, gone)
	delete(r.served, uid)
}

func (r *recorder) Synced() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note("synced")
}

func (r *recorder) refuse(uid string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail[uid] = err
}

// of is what the proxy has been told of a pod, and its namespace.
func (r *recorder) of(uid string) (handoff.Pod, netns.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.served[uid], r.ns[uid]
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.served)
}

// took returns what has been done since it was asked last.
func (r *recorder) took() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.calls = nil }()
	return r.calls
}

// bench is a client and an agent that talks to it.
type bench struct {
	*recorder
	t      *testing.T
	agent  *zdstest.Agent
	client *Client
	path   string
}

func start(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "ztunnel.sock"), recorder: &recorder{
		served: map[string]handoff.Pod{}, missing: map[string]bool{}, fail: map[string]error{}, ns: map[string]netns.ID{}, tried: make(chan string, 100),
		offered: make(chan func(*netns.NS) bool, 1),
	}}
	b.listen()
	b.client = New(Config{Socket: b.path, TrustDomain: "example.org", Sockets: b.recorder, Log: zaptest.NewLogger(t)})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := b.client.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait(); _ = b.agent.Close() })
	return b
}

func (b *bench) listen() {
	b.t.Helper()
	var err error
	if b.agent, err = zdstest.Listen(b.path); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) accept() *zdstest.Conn {
	b.t.Helper()
	c, err := b.agent.Accept(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) wantCalls(want ...string) {
	b.t.Helper()
	if got := b.took(); !slices.Equal(got, want) {
		b.t.Errorf("did %q, want %q", got, want)
	}
}

// loopback is the one device that a new namespace has.
var loopback = &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}

// namespace makes one with an address and returns a path to it.
func namespace(t *testing.T, address string) string {
	t.Helper()
	opened := make(chan *os.File, 1)
	go func() { // its thread ends with it
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		} else if address != "" {
			addr, err := netlink.ParseAddr(address)
			if err := errors.Join(err, netlink.AddrAdd(loopback, addr)); err != nil {
				t.Error(err)
			}
		}
		f, err := os.Open(netns.Own)
		if err != nil {
			t.Error(err)
		}
		opened <- f
	}()
	f := <-opened
	t.Cleanup(func() { _ = f.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}

func info(name string) *protocol.WorkloadInfo {
	return &protocol.WorkloadInfo{Name: name, Namespace: "shop", ServiceAccount: "web"}
}

// A pod's life: who it is by what the agent says, where by its namespace.
func TestLifeOfAPod(t *testing.T) {
	b := start(t)
	c := b.accept()
	one, other := namespace(t, "198.18.1.1/24"), namespace(t, "198.18.1.2/24")
	b.must(c.Add("u1", info("p1"), one))
	b.wantCalls("add u1")
	want := handoff.Pod{
		UID: "u1", Name: "p1", Namespace: "shop", ServiceAccount: "web", TrustDomain: "example.org",
		Addresses: []netip.Addr{netip.MustParseAddr("198.18.1.1")}, NoLoopbackRoute: true,
	}
	got, first := b.of("u1")
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the proxy is told of %+v, want %+v", got, want)
	}
	if b.client.Synced() {
		t.Error("synced before the snapshot has ended")
	}
	b.must(c.SnapshotSent())
	b.wantCalls("synced")
	if !b.client.Synced() {
		t.Error("not synced")
	}
	b.must(c.Add("u1", info("p1"), one)) // once more
	if _, ns := b.of("u1"); ns != first {
		t.Error("the same namespace is another one")
	}
	b.must(c.Add("u1", info("p1"), other)) // the pod's sandbox was made anew
	if got, ns := b.of("u1"); ns == first || got.Addresses[0] != netip.MustParseAddr("198.18.1.2") {
		t.Error("the earlier namespace serves on")
	}
	b.wantCalls("add u1", "add u1")
	b.must(c.Del("u1"))
	b.wantCalls("remove u1, gone false") // its namespace has its address still
	b.must(c.Del("u1"))
	b.wantCalls()
	if s := b.client.Stats(); s != (Stats{}) {
		t.Errorf("left: %+v", s)
	}
}

// change adds an address to a namespace or takes it away.
func (b *bench) change(path, address string, do func(netlink.Link, *netlink.Addr) error) {
	b.t.Helper()
	ns, err := netns.Open(path)
	b.must(err)
	defer ns.Close()
	addr, err := netlink.ParseAddr(address)
	b.must(err)
	b.must(ns.Do(func() error { return do(loopback, addr) }))
}

// What has no address left has ended.
func TestPodIsGone(t *testing.T) {
	b := start(t)
	c := b.accept()
	path := namespace(t, "198.18.1.1/24")
	b.must(c.Add("u1", info("p1"), path))
	b.change(path, "198.18.1.1/24", netlink.AddrDel)
	b.must(c.Del("u1"))
	b.wantCalls("add u1", "remove u1, gone true")
}

// What a new snapshot does not name has gone meanwhile; the rest is not
// touched.
func TestReconnect(t *testing.T) {
	b := start(t)
	c := b.accept()
	paths := map[string]string{}
	for i, uid := range []string{"u1", "u2", "u3"} {
		paths[uid] = namespace(t, fmt.Sprintf("198.18.1.%d/24", i+1))
		b.must(c.Add(uid, info(uid), paths[uid]))
	}
	b.must(c.SnapshotSent())
	b.must(c.Close())
	b.must(b.agent.Close())
	b.took()

	b.listen()
	c = b.accept()
	b.must(c.Add("u1", info("u1"), paths["u1"]))
	b.must(c.Keep("u2"))
	b.must(c.Keep("u4")) // known to a proxy at most
	if n := b.count(); n != 3 {
		t.Errorf("before the end of the snapshot %d pods are served", n)
	}
	b.must(c.SnapshotSent())
	b.wantCalls("add u1", "keep u4", "remove u3, gone false", "synced")
	if s := b.client.Stats(); s != (Stats{Served: 3}) {
		t.Errorf("with a kept pod that the proxy has: %+v", s)
	}
	b.miss("u4", true)
	if s := b.client.Stats(); s != (Stats{Served: 2, Failing: 1}) {
		t.Errorf("with a kept pod that nobody has: %+v", s)
	}
	b.must(c.Add("u4", info("u4"), paths["u3"]))
	b.must(c.Del("u4"))
	b.wantCalls("add u4", "remove u4, gone false")
}

// A snapshot names a pod even if it cannot be added: one that is served goes
// on, what a proxy has of another is kept, and that one is tried again.
func TestFailedAdditionsInASnapshot(t *testing.T) {
	b := start(t)
	c := b.accept()
	unseen, lost := namespace(t, "198.18.1.1/24"), namespace(t, "198.18.1.2/24")
	b.must(c.Add("u1", info("p1"), unseen))
	b.must(c.Add("u2", info("p2"), lost))
	b.must(c.SnapshotSent())
	b.must(c.Close())
	b.must(b.agent.Close())
	b.took()
	b.change(unseen, "198.18.1.1/24", netlink.AddrDel)

	b.listen()
	c = b.accept()
	f, err := os.Open(lost)
	b.must(err)
	defer f.Close()
	refused := func(uid, want string, err error) {
		t.Helper()
		var nack *zdstest.Nack
		if !errors.As(err, &nack) || !strings.Contains(err.Error(), want) {
			t.Errorf("adding %s is answered with %v, want %q", uid, err, want)
		}
	}
	later := namespace(t, "")
	refused("u1", "no address", c.Add("u1", info("p1"), unseen))
	refused("u4", "no address", c.Add("u4", info("p4"), later))
	for _, uid := range []string{"u2", "u3"} {
		add := &protocol.AddWorkload{Uid: uid, WorkloadInfo: info(uid)}
		refused(uid, "lost", c.Send(&protocol.Request{Payload: &protocol.Request_Add{Add: add}}, slices.Repeat([]int{int(f.Fd())}, 9)...))
	}
	b.must(c.SnapshotSent())
	b.wantCalls("keep u4", "keep u3", "synced")
	if s := b.client.Stats(); s != (Stats{Served: 2, Failing: 2}) {
		t.Errorf("%+v", s)
	}
	b.change(later, "198.18.1.4/24", netlink.AddrAdd)
	for uid := ""; uid != "u4"; {
		select {
		case uid = <-b.tried:
		case <-time.After(20 * time.Second):
			t.Fatal("u4 is not tried again")
		}
	}
	b.must(c.Add("u3", info("p3"), lost)) // by now it is noted what became of u4
	b.wantCalls("add u4", "add u3")
	if s := b.client.Stats(); s != (Stats{Served: 4}) {
		t.Errorf("%+v", s)
	}
	if p, _ := b.of("u4"); len(p.Addresses) != 1 || p.Addresses[0] != netip.MustParseAddr("198.18.1.4") || p.Name != "p4" {
		t.Errorf("the proxy is told of %+v", p)
	}
}

// Of a pod that only a proxy knows, and that the agent does not name once it is
// there, the namespace says whether it has ended: it holds no address any more.
func TestEndOfOfferedPods(t *testing.T) {
	b := start(t)
	b.must(b.accept().Close()) // before it has named any
	var ended func(*netns.NS) bool
	select {
	case ended = <-b.offered:
	case <-time.After(20 * time.Second):
		t.Fatal("what proxies have is not kept")
	}
	for address, want := range map[string]bool{"": true, "198.18.1.1/24": false} {
		ns, err := netns.Open(namespace(t, address))
		b.must(err)
		if got := ended(ns); got != want {
			t.Errorf("the pod of a namespace with the address %q has ended: %v", address, got)
		}
		b.must(ns.Close())
	}
}

// What served a pod in an earlier namespace goes even if nothing can be seen in
// the next one yet.
func TestNextNamespaceWithoutAddress(t *testing.T) {
	b := start(t)
	c := b.accept()
	b.must(c.Add("u1", info("p1"), namespace(t, "198.18.1.1/24")))
	b.must(c.SnapshotSent())
	var nack *zdstest.Nack
	next := namespace(t, "")
	if err := c.Add("u1", info("p1"), next); !errors.As(err, &nack) {
		t.Errorf("answered %v", err)
	}
	b.wantCalls("add u1", "synced", "remove u1, gone false")
	if s := b.client.Stats(); s != (Stats{Failing: 1}) {
		t.Errorf("%+v", s)
	}
	b.must(c.Del("u1"))
	b.wantCalls("remove u1, gone true")
}

// A pod that cannot be served is tried again by itself, and holds up no other.
func TestFailureAndRetry(t *testing.T) {
	b := start(t)
	c := b.accept()
	b.refuse("u1", errors.New("port 15001 is taken"))
	err := c.Add("u1", info("p1"), namespace(t, "198.18.1.1/24"))
	var nack *zdstest.Nack
	if !errors.As(err, &nack) || !strings.Contains(err.Error(), "shop/p1") || !strings.Contains(err.Error(), "port 15001 is taken") {
		t.Fatalf("answered %v", err)
	}
	b.must(c.Add("u2", info("p2"), namespace(t, "198.18.1.2/24")))
	b.must(c.SnapshotSent())
	if s := b.client.Stats(); s != (Stats{Served: 1, Failing: 1}) {
		t.Errorf("%+v", s)
	}
	for range 3 { // it is tried again, and again
		for uid := range b.tried {
			if uid == "u1" {
				break
			}
		}
	}
	b.wantCalls("add u2", "synced")
	b.refuse("u1", nil)
	for {
		if slices.Contains(b.took(), "add u1") {
			break
		}
		<-b.tried
	}
	if s := b.client.Stats(); s != (Stats{Served: 2}) {
		t.Errorf("%+v", s)
	}
}

// Wrong requests are refused by name, and the connection and what is right
// goes on.
func TestBadRequests(t *testing.T) {
	b := start(t)
	c := b.accept()
	b.must(c.SnapshotSent())
	b.wantCalls("synced")
	open := func(path string) int {
		f, err := os.Open(path)
		b.must(err)
		t.Cleanup(func() { _ = f.Close() })
		return int(f.Fd())
	}
	good, empty := open(namespace(t, "198.18.1.1/24")), open(namespace(t, ""))
	own, null := open(netns.Own), open("/dev/null")
	add := func(uid string, info *protocol.WorkloadInfo) *protocol.Request {
		return &protocol.Request{Payload: &protocol.Request_Add{Add: &protocol.AddWorkload{Uid: uid, WorkloadInfo: info}}}
	}
	del := &protocol.Request{Payload: &protocol.Request_Del{Del: &protocol.DelWorkload{Uid: "u9"}}}
	keep := &protocol.Request{Payload: &protocol.Request_Keep{Keep: &protocol.KeepWorkload{Uid: "u9"}}}
	end := &protocol.Request{Payload: &protocol.Request_SnapshotSent{SnapshotSent: &protocol.SnapshotSent{}}}
	long := strings.Repeat("x", 2000)
	for name, tt := range map[string]struct {
		request *protocol.Request
		fds     []int
		want    []string // parts of the answer
	}{
		"no descriptor":            {add("u1", info("p1")), nil, []string{`"u1"`, "shop/p1", "0 descriptors, want 1"}},
		"two descriptors":          {add("u1", info("p1")), []int{good, good}, []string{`"u1"`, "shop/p1", "2 descriptors, want 1"}},
		"more than are looked at":  {add("u1", info("p1")), slices.Repeat([]int{good}, 9), []string{`"u1"`, "shop/p1", "descriptors were lost"}},
		"one with a deletion":      {del, []int{good}, []string{`delete pod "u9"`, "1 descriptors, want 0"}},
		"one with a keep":          {keep, []int{good}, []string{`keep pod "u9"`, "1 descriptors, want 0"}},
		"one with the end":         {end, []int{good}, []string{"end of the snapshot", "1 descriptors, want 0"}},
		"something else":           {add("u1", info("p1")), []int{null}, []string{`"u1"`, "shop/p1", "not a network namespace"}},
		"the node's namespace":     {add("u1", info("p1")), []int{own}, []string{`"u1"`, "the node's own"}},
		"a namespace of nobody":    {add("u1", info("p1")), []int{empty}, []string{`"u1"`, "no address"}},
		"no UID":                   {add("", info("p1")), []int{good}, []string{"shop/p1", "UID or name is missing"}},
		"no name":                  {add("u1", info("")), []int{good}, []string{`"u1"`, "UID or name is missing"}},
		"no namespace":             {add("u1", &protocol.WorkloadInfo{Name: "p1"}), []int{good}, []string{`"u1"`, "spiffe"}},
		"nothing of it":            {add("u1", nil), []int{good}, []string{`"u1"`, "is missing"}},
		"an account with a path":   {add("u1", &protocol.WorkloadInfo{Name: "p1", Namespace: "shop", ServiceAccount: "web/sa/root"}), []int{good}, []string{`"u1"`, "web/sa/root"}},
		"a namespace with a path":  {add("u1", &protocol.WorkloadInfo{Name: "p1", Namespace: "a/sa/b"}), []int{good}, []string{`"u1"`, "a/sa/b"}},
		"a name beyond all bounds": {add("u1", info(long)), []int{good}, []string{"longer than 1024"}},
		"a deletion of nobody":     {&protocol.Request{Payload: &protocol.Request_Del{Del: &protocol.DelWorkload{}}}, nil, []string{"UID is missing"}},
		"a keep of nobody":         {&protocol.Request{Payload: &protocol.Request_Keep{Keep: &protocol.KeepWorkload{}}}, nil, []string{"UID is missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.Send(tt.request, tt.fds...)
			var nack *zdstest.Nack
			if !errors.As(err, &nack) {
				t.Fatalf("answered %v", err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the answer is %q, without %q", err, part)
				}
			}
			if did := b.took(); len(did) > 0 {
				t.Errorf("it did %q", did)
			}
		})
	}
	var nack *zdstest.Nack
	if err := c.SendRaw([]byte{0xff, 0xff}); !errors.As(err, &nack) {
		t.Errorf("what is no message is answered with %v", err)
	}
	if err := c.SendRaw([]byte{0x7a, 0x00}); !errors.As(err, &nack) || !strings.Contains(err.Error(), "unknown kind") {
		t.Errorf("a request of a later version is answered with %v", err)
	}
	b.must(c.Add("u1", info("p1"), fmt.Sprintf("/proc/self/fd/%d", good)))
	for name, err := range map[string]error{"keep": c.Keep("u1"), "a second end": c.SnapshotSent()} {
		if !errors.As(err, &nack) {
			t.Errorf("%s after the snapshot is answered with %v", name, err)
		}
	}
	b.wantCalls("add u1")
	b.wantDescriptors()
}

// wantDescriptors makes sure that none of those that came with wrong requests
// is open: the client has the one of its pod.
func (b *bench) wantDescriptors() {
	b.t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	b.must(err)
	namespaces := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "net:[") {
			namespaces++
		}
	}
	const want = 6 // good and empty, twice each, own, and the client's
	if namespaces != want {
		b.t.Errorf("%d descriptors of network namespaces are open, want %d", namespaces, want)
	}
}

// Only who has this process's own rights may say which pod is which.
func TestImpostor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	dir := t.TempDir()
	b := &bench{t: t, path: filepath.Join(dir, "ztunnel.sock")}
	listening := make(chan struct{})
	go func() { // the thread that is somebody else ends with this goroutine
		defer close(listening)
		runtime.LockOSThread()
		if err := errors.Join(os.Chmod(dir, 0o777), os.Chmod(filepath.Dir(dir), 0o777)); err != nil {
			t.Error(err)
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 54321, ^uintptr(0)); errno != 0 {
			t.Error(errno)
		}
		b.listen()
	}()
	<-listening
	defer func() { _ = b.agent.Close() }()
	_, err := New(Config{Socket: b.path, Sockets: &recorder{}}).session(t.Context())
	if err == nil || !strings.Contains(err.Error(), "54321") {
		t.Errorf("an agent of another user: %v", err)
	}
}
