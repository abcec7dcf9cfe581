package ratelimit

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

func dial(ctx context.Context, _, network, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

func applied(amount, burst uint64, key string, store *model.LimitStore) *policy.AppliedLimit {
	l := &model.Limit{Unit: model.LimitRequests, Amount: amount, Interval: time.Second, Burst: burst}
	return &policy.AppliedLimit{Policy: "mesh/limit", Limit: l, Key: key, Store: store}
}

func TestBurstAndRate(t *testing.T) {
	l, now := New(nil), time.Now()
	a := applied(10, 3, "", nil)
	take := func(after time.Duration) Outcome { return l.countHere(a, 1, false, now.Add(after)) }
	for i := range 3 {
		if o := take(0); !o.Allowed {
			t.Errorf("%d of the burst is refused", i)
		}
	}
	if o := take(0); o.Allowed || o.RetryAfter != 100*time.Millisecond {
		t.Errorf("beyond the burst: %+v", o)
	}
	if o := take(100 * time.Millisecond); !o.Allowed {
		t.Error("refused after an interval of one")
	}
	if o := take(150 * time.Millisecond); o.Allowed || o.RetryAfter != 50*time.Millisecond {
		t.Errorf("half an interval later: %+v", o)
	}
	if o := l.countHere(applied(10, 3, "other", nil), 1, false, now); !o.Allowed {
		t.Error("another key is not counted apart")
	}
}

// Bytes count when they have passed; the next request waits for what was too
// much.
func TestCharges(t *testing.T) {
	l, now := New(nil), time.Now()
	a := applied(1000, 500, "", nil)
	ask := func(after time.Duration) bool { return l.countHere(a, 0, true, now.Add(after)).Allowed }
	if !ask(0) {
		t.Error("refused before anything passed")
	}
	l.countHere(a, 2000, true, now)
	if ask(time.Second) || !ask(1501*time.Millisecond) {
		t.Error("2000 bytes at 1000 a second and a burst of 500 want 1.5 s")
	}
}

// No number of bytes is so large that it counts for little.
func TestLargeCharges(t *testing.T) {
	for name, store := range map[string]*model.LimitStore{"here": nil, "shared": startRedis(t)} {
		l := New(dial)
		defer l.Close()
		l.stores.timeout = time.Minute
		for n := uint64(2); n < 1<<62; n <<= 1 {
			a := applied(1, 1, fmt.Sprint(n), store)
			a.Limit.Interval = 1000 * time.Hour
			l.Charge(t.Context(), "", a, n)
			if o := l.Charge(t.Context(), "", a, n); o.Allowed || o.Alone {
				t.Errorf("%s: %d bytes, and %+v", name, n, o)
			}
		}
	}
}

// However many keys come, memory is bounded, and nobody gets more for it.
func TestKeysAreBounded(t *testing.T) {
	l, now := New(nil), time.Now()
	for i := range 2 * maxCounts {
		l.countHere(applied(1, 1, fmt.Sprint(i), nil), 1, false, now)
	}
	if n := len(l.counts); n > maxCounts+1 {
		t.Errorf("%d counts", n)
	}
	if l.countHere(applied(1, 1, "one more", nil), 1, false, now).Allowed {
		t.Error("a key beyond the bound counts for itself")
	}
	if !l.countHere(applied(1, 1, "later", nil), 1, false, now.Add(time.Minute)).Allowed {
		t.Error("old counts stay for ever")
	}
}

// startRedis starts a real one on loopback.
func startRedis(t *testing.T) *model.LimitStore {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	cmd := exec.CommandContext(t.Context(), "redis-server", "--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir(),
		"--pidfile", filepath.Join(t.TempDir(), "pid"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("no Redis here: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "Ready to accept connections") {
			go func() {
				for lines.Scan() { // it must not wait for a reader
				}
			}()
			return &model.LimitStore{Host: "127.0.0.1", Port: uint16(port)}
		}
	}
	t.Fatal("Redis did not start")
	return nil
}

// Nodes that share a store share what is allowed.
func TestSharedByNodes(t *testing.T) {
	store := startRedis(t)
	nodes := []*Limiter{New(dial), New(dial)}
	for _, n := range nodes {
		n.stores.timeout = time.Minute // on a busy machine a request may take longer than the store's
	}
	allowed := 0
	for i := range 40 {
		a := applied(1, 10, "", store)
		a.Limit.Interval = time.Minute
		o := nodes[i%2].Take(t.Context(), "", a, 1)
		if o.Alone {
			t.Fatal("the store is there, and was not used")
		}
		if o.Allowed {
			allowed++
		} else if o.RetryAfter <= 0 || o.RetryAfter > time.Minute {
			t.Errorf("retry after %v", o.RetryAfter)
		}
	}
	if allowed != 10 {
		t.Errorf("%d of 40 are allowed, want the burst of 10", allowed)
	}
	bytes := applied(1000, 500, "bytes", store)
	bytes.Limit.Interval = time.Minute
	if !nodes[0].Charge(t.Context(), "", bytes, 2000).Allowed || nodes[1].Charge(t.Context(), "", bytes, 0).Allowed {
		t.Error("bytes that one node has counted are not the other's")
	}
	for _, n := range nodes {
		n.Close()
	}
}

// Over TLS a store counts that has a certificate of its roots for its name, and
// no other.
func TestStoreOverTLS(t *testing.T) {
	behind := startRedis(t)
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: certified.TLS.Certificates, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	var carrying sync.WaitGroup
	carrying.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			redis, err := net.Dial("tcp", net.JoinHostPort(behind.Host, strconv.Itoa(int(behind.Port))))
			if err != nil {
				_ = c.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{c, redis}, {redis, c}} {
				carrying.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					_ = way[0].Close()
				})
			}
		}
	})
	defer carrying.Wait()
	defer l.Close()
	own := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certified.Certificate().Raw}))
	for _, test := range []struct {
		name, serverName, roots string
		counts                  bool
	}{
		{"by its address", "", own, true},
		{"by its name", "example.com", own, true},
		{"another name", "other.example", own, false},
		{"roots of the machine", "", "", false},
		{"roots that are none", "", "PEM", false},
	} {
		n := New(dial)
		n.stores.timeout = time.Minute
		a := applied(1, 1, test.name, &model.LimitStore{
			Host: "127.0.0.1", Port: uint16(l.Addr().(*net.TCPAddr).Port), TLS: true, ServerName: test.serverName, Roots: test.roots,
		})
		if o := n.Take(t.Context(), "", a, 1); o.Alone == test.counts || !o.Allowed {
			t.Errorf("%s: %+v", test.name, o)
		}
		n.Close()
	}
}

// A store that is away leaves each node with the limit for itself, at once.
func TestStoreIsAway(t *testing.T) {
	l := New(func(ctx context.Context, _, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	defer l.Close()
	l.stores.timeout, l.stores.pause = 2*time.Second, time.Hour
	a := applied(1, 2, "", &model.LimitStore{Host: "192.0.2.1", Port: 6379})
	began := time.Now()
	for i := range 50 {
		if o := l.Take(t.Context(), "", a, 1); !o.Alone || o.Allowed != (i < 2) {
			t.Errorf("request %d: %+v", i, o)
		}
	}
	if d := time.Since(began); d > 5*l.stores.timeout { // the first one alone waits
		t.Errorf("50 requests took %v", d)
	}
}

// A caller that goes away while it is counted says nothing about the store.
func TestCallersThatGoAway(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	dials := 0
	l := New(func(ctx context.Context, _, _, _ string) (net.Conn, error) {
		dials++
		leave()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	defer l.Close()
	l.stores.pause = time.Hour
	a := applied(1, 1, "", &model.LimitStore{Host: "192.0.2.1", Port: 6379})
	l.Take(ctx, "", a, 1)
	for range 2 { // the second one is not to wait again
		l.Take(t.Context(), "", a, 1)
	}
	if dials != 2 {
		t.Errorf("the store was tried %d times, want once for who has gone and once until it failed", dials)
	}
}

func BenchmarkTake(b *testing.B) {
	l, a := New(nil), applied(1e9, 1e9, "", nil)
	b.ReportAllocs()
	for b.Loop() {
		l.Take(b.Context(), "", a, 1)
	}
}

// Beyond their bound the connections to the store go that were used the longest
// time ago, but none while something is counted over them.
func TestStoresAreBounded(t *testing.T) {
	l := New(dial)
	defer l.Close()
	at := &model.LimitStore{Host: "192.0.2.1", Port: 6379}
	get := func(as string) *store {
		t.Helper()
		st, done, err := l.stores.get(t.Context(), as, at)
		if err != nil {
			t.Fatal(err)
		}
		done()
		return st
	}
	busy, done, err := l.stores.get(t.Context(), "busy", at)
	if err != nil {
		t.Fatal(err)
	}
	first, second := get("0"), get("1")
	for i := 3; i < maxStores; i++ {
		get(strconv.Itoa(i))
	}
	if get("0") != first {
		t.Error("the first is gone before there are too many")
	}
	get("another")
	if n := l.stores.clients.Len(); n != maxStores {
		t.Errorf("%d stores", n)
	}
	if get("0") != first {
		t.Error("the one in use is gone")
	}
	if get("1") == second {
		t.Error("the one that was used the longest time ago is still there")
	}
	if get("busy") != busy {
		t.Error("the one over which something is counted is gone")
	}
	done()
}
