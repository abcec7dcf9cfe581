package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	tacithttp "github.com/tacit-mesh/tacit/proxy/http"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/ratelimit"
	"github.com/tacit-mesh/tacit/xds/model"
)

// limitOfBytes allows so many at once, and hardly any more in the time of a test.
func limitOfBytes(burst uint64, dryRun bool) *model.Policy {
	return &model.Policy{
		Name: "bytes", Namespace: "mesh", Scope: model.ScopeNamespace, Action: model.ActionLimit, DryRun: dryRun,
		RateLimit: &model.RateLimit{Limits: []model.Limit{{Unit: model.LimitBytes, Amount: 1, Interval: time.Hour, Burst: burst}}},
	}
}

// declaredTCP is a Service that says that the port carries no HTTP.
func declaredTCP() model.Update {
	w := &model.Workload{
		UID: "k//Pod/mesh/server", PodUID: "uid", Name: "server", Namespace: "mesh",
		Services: map[string][]model.Port{"mesh/server": {{Service: 80, Target: 8080, AppProtocol: model.AppTCP}}},
	}
	w.Addresses = append(w.Addresses, arrived4)
	return model.Update{Workloads: []*model.Workload{w}}
}

// What carries no HTTP is ended with RST once too many bytes have passed, to a
// buffer where this node counts alone, and so is what comes then, whether the
// port is declared or recognized.
func TestLimitOfBytes(t *testing.T) {
	away := &model.LimitStore{Host: "127.0.0.1", Port: 1}
	for _, test := range []struct {
		declared bool
		store    *model.LimitStore
	}{{false, nil}, {true, nil}, {false, away}, {true, away}} {
		t.Run(fmt.Sprintf("declared %v, in a store %v", test.declared, test.store != nil), func(t *testing.T) {
			limit := limitOfBytes(100_000, false)
			limit.RateLimit.Store = test.store
			s := startOneServer(t, echoing(t), limit)
			if test.declared {
				s.State.Apply(declaredTCP())
			}
			c := s.dial(t)
			text := append(make([]byte, 20_000), "\x00 no HTTP"...)
			var err error
			passed := 0
			for ; err == nil && passed < 1<<30; passed += 2 * len(text) {
				err = exchangeText(c, text)
			}
			if !wasReset(err) || passed < 80_000 || test.store == nil && passed > 100_000+4*len(text) {
				t.Errorf("ended after %d bytes with %v", passed, err)
			}
			next, err := s.connect(t)
			if err == nil {
				err = exchangeText(next, text)
			}
			if !wasReset(err) {
				t.Errorf("the next connection: %v", err)
			}
		})
	}
}

// What is read to know that it is no HTTP counts, too: where it is too much,
// none of it gets to the application.
func TestLimitOfFirstBytes(t *testing.T) {
	app := listening(t)
	defer func() { _ = app.Close() }()
	got := make(chan int, 1)
	go func() {
		c, err := app.Accept()
		if err != nil {
			return
		}
		n, _ := c.Read(make([]byte, 1))
		_ = c.Close()
		got <- n
	}()
	s := startOneServer(t, app.Addr(), limitOfBytes(1000, false))
	if err := exchangeText(s.dial(t), append(make([]byte, 1500), "\x00 no HTTP"...)); !wasReset(err) {
		t.Errorf("ended with %v", err)
	}
	if n := <-got; n != 0 {
		t.Error("the application has got some")
	}
}

// A connection on which nothing has passed since others have used a limit up is
// not ended by it, and ends in order.
func TestLimitOfBytesLeavesTheSilentAlone(t *testing.T) {
	s := startOneServer(t, echoing(t), limitOfBytes(100_000, false))
	silent, other := s.dial(t), s.dial(t)
	if err := exchangeText(silent, []byte("\x00 no HTTP")); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		err = exchangeText(other, make([]byte, 20_000))
	}
	if !wasReset(err) {
		t.Fatal(err)
	}
	if err := silent.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := silent.Read(make([]byte, 1)); n != 0 || err != io.EOF { //nolint:errorlint // returned as it is
		t.Errorf("ended with %v", err)
	}
}

// On a dry run it is noted that there was more, and nothing is ended.
func TestLimitOfBytesOnDryRun(t *testing.T) {
	s := startOneServer(t, echoing(t), limitOfBytes(1, true))
	c := s.dial(t)
	for noted := false; !noted; {
		if err := exchangeText(c, []byte("\x00some bytes")); err != nil {
			t.Fatal(err)
		}
		for _, live := range s.conns.Live() {
			live.mu.Lock()
			noted = noted || live.record.DryRun == "mesh/bytes"
			live.mu.Unlock()
		}
	}
	if err := exchangeText(c, []byte("more")); err != nil {
		t.Error(err)
	}
}

// Limits of requests and of connections that are on dry run are noted where they
// would have refused, and refuse nothing.
func TestLimitsOnDryRun(t *testing.T) {
	limit := func(unit model.LimitUnit, dryRun bool) *model.Policy {
		p := limitOfBytes(1, dryRun)
		p.Name, p.RateLimit.Limits[0].Unit = "few", unit
		return p
	}
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer app.Close()
	for _, test := range []struct {
		name   string
		unit   model.LimitUnit
		dryRun bool
		passed int
	}{
		{"requests", model.LimitRequests, false, 1}, {"requests on dry run", model.LimitRequests, true, 3},
		{"connections", model.LimitConnections, false, 1}, {"connections on dry run", model.LimitConnections, true, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startOneServer(t, app.Listener.Addr(), limit(test.unit, test.dryRun))
			passed := 0
			for range 3 {
				client := s.client(t, 1) // with a connection of its own
				answer, err := client.Get("http://server/")
				if err != nil {
					continue
				}
				_ = answer.Body.Close()
				if answer.StatusCode == http.StatusOK {
					passed++
				}
			}
			if passed != test.passed {
				t.Errorf("%d of 3 passed, want %d", passed, test.passed)
			}
			if !test.dryRun || test.unit == model.LimitRequests {
				return // of requests the record has its own, which is gone with them
			}
			noted := false
			for _, c := range s.conns.Live() {
				c.mu.Lock()
				noted = noted || c.record.DryRun == "mesh/few"
				c.mu.Unlock()
			}
			if !noted {
				t.Error("not noted")
			}
		})
	}
}

// A limit that comes later holds for live connections, from then on.
func TestLimitOfBytesComesLater(t *testing.T) {
	s := startOneServer(t, echoing(t))
	s.State.Apply(declaredTCP())
	c := s.dial(t)
	text := make([]byte, 200_000)
	if err := exchangeText(c, text); err != nil {
		t.Fatal(err)
	}
	s.State.Apply(model.Update{Policies: []*model.Policy{limitOfBytes(100_000, false)}})
	if err := exchangeText(c, []byte("few")); err != nil {
		t.Fatalf("what passed before counts: %v", err)
	}
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = exchangeText(c, text)
	}
	if !wasReset(err) {
		t.Errorf("%v", err)
	}
}

// Requests of HTTP are answered in the place of a reset, on a connection that
// lives on.
func TestLimitOfBytesOfRequests(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1000)) }))
	defer app.Close()
	s := startOneServer(t, app.Listener.Addr(), limitOfBytes(500, false))
	dials := 0
	transport := &http.Transport{Dial: func(_, _ string) (net.Conn, error) { //nolint:staticcheck // the context is of no use here
		dials++
		return net.Dial("tcp", s.address)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	for i, want := range []int{200, 429, 429} {
		answer, err := client.Get("http://server/")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		if answer.StatusCode != want || want == 429 && answer.Header.Get("Retry-After") == "" {
			t.Errorf("request %d: %v %v, want %d", i, answer.Status, answer.Header, want)
		}
	}
	if dials != 1 {
		t.Errorf("%d connections", dials)
	}
}

// Bytes of a request count while it lives, which may be for ever: what comes then
// is refused, and it goes on.
func TestLimitOfBytesOfStreams(t *testing.T) {
	more := make(chan struct{}, 1)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/endless" {
			return
		}
		for {
			_, _ = w.Write(make([]byte, 1000))
			_ = http.NewResponseController(w).Flush()
			select {
			case <-more:
			case <-r.Context().Done():
				return
			}
		}
	}))
	defer app.Close()
	s := startOneServer(t, app.Listener.Addr(), limitOfBytes(500, false))
	endless, err := s.client(t, 1).Get("http://server/endless")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = endless.Body.Close() }()
	if _, err := io.ReadFull(endless.Body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	other := s.client(t, 1)
	until(t, "a request beside it is refused", func() bool {
		answer, err := other.Get("http://server/")
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		return answer.StatusCode == http.StatusTooManyRequests
	})
	more <- struct{}{}
	if _, err := io.ReadFull(endless.Body, make([]byte, 1000)); err != nil {
		t.Errorf("it does not go on: %v", err)
	}
}

// A request of which nothing passes costs less and less, and is counted as often
// as ever once something does.
func TestIdleRequestsAreCountedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &exchange{
			requests: &requests{proxy: &Proxy{limits: ratelimit.New(nil)}, conn: new(Connection)},
			live:     new(tacithttp.Live),
			limits:   []policy.AppliedLimit{{Policy: "bytes", Limit: &limitOfBytes(100, false).RateLimit.Limits[0]}},
		}
		x.countBytes()
		after := func(wait, want time.Duration) {
			t.Helper()
			<-time.After(wait)
			synctest.Wait()
			x.bytes.mu.Lock()
			defer x.bytes.mu.Unlock()
			if x.bytes.pause != want {
				t.Errorf("counted every %v, want %v", x.bytes.pause, want)
			}
		}
		after(meterEvery, 2*meterEvery)
		after(time.Minute, meterIdle)
		x.live.Sent.Add(1000)
		after(meterIdle, meterEvery)
		if o := x.requests.proxy.limits.Charge(t.Context(), "", &x.limits[0], 0); o.Allowed {
			t.Error("what has passed is not counted")
		}
		x.countLast(1000)
	})
}
