package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
)

// flow is a connection of the shop that has just ended.
func flow(from, to, outcome string) *flows.Event {
	end := func(name string) flows.End {
		for _, w := range shop().Workloads() {
			if podName(w) == name {
				return flows.End{Addr: netip.AddrPortFrom(w.Addresses[0], 8080), Workload: w, Identity: w.Identity()}
			}
		}
		namespace, pod, _ := strings.Cut(name, "/")
		return flows.End{Namespace: namespace, Name: pod}
	}
	return &flows.Event{
		Kind: flows.Ended, ID: "0af7651916cd43dd8448eb211c80319c", Inbound: true, Security: "mtls", Outcome: outcome,
		Began: time.Now(), Time: time.Now(), Source: end(from), Destination: end(to),
	}
}

func flowServer(t *testing.T) (*Server, *flows.Log) {
	l := flows.New(100, noon)
	return &Server{
		Path: filepath.Join(t.TempDir(), "admin.sock"), Node: "node-a", Snapshot: shop, Flows: l,
		LiveFlows: func() iter.Seq[flows.Event] {
			e := flow("other/client", "shop/db", "ok")
			e.Kind = flows.Live
			return slices.Values([]flows.Event{*e})
		},
	}, l
}

func TestFlows(t *testing.T) {
	s, l := flowServer(t)
	client, _ := start(t, s)
	l.Add(flow("shop/frontend", "shop/backend-1", "ok"))
	l.Add(flow("shop/departed", "shop/backend-1", "denied"))
	old := flow("shop/frontend", "shop/backend-1", "ok")
	old.Time = old.Time.Add(-time.Hour)
	for _, test := range []struct {
		query, want string // the outcomes and kinds
		code        int
	}{
		{"", "ended ok,ended denied,live ok", 200},
		{"from=shop/frontend", "ended ok", 200},
		{"to=shop/", "ended ok,ended denied,live ok", 200},
		{"outcome=denied", "ended denied", 200},
		{"either=other/client", "live ok", 200},
		{"limit=1", "live ok", 200},
		{"since=1ns", "live ok", 200},
		{"from=shop/departed", "ended denied", 200}, // which the mesh has forgotten
		{"from=shop/fronted", "no pod or owner of pods shop/fronted in the mesh; did you mean shop/frontend?", 400},
		{"to=shop/backend", "did you mean shop/backend-1, shop/backend-2?", 400},
		{"to=shp/", "did you mean shop/?", 400},
		{"to=nothing/like-it", "in the mesh", 400},
		{"from=192.0.2.9", "", 200},
		{"since=-1s", "want a duration", 400},
		{"limit=0", "want a number", 400},
		{"outcome=fine", "want ok, denied", 400},
	} {
		code, body := get(t, client, "/flows?"+test.query)
		var answer Flows
		if err := json.Unmarshal(body, &answer); err != nil {
			t.Fatalf("%s: %v: %s", test.query, err, body)
		}
		if code != 200 {
			if code != test.code || !strings.Contains(string(body), test.want) {
				t.Errorf("%s: %d %s; want %d %s", test.query, code, body, test.code, test.want)
			}
			continue
		}
		var got []string
		for _, f := range answer.Flows {
			got = append(got, f.Kind+" "+f.Outcome)
		}
		if strings.Join(got, ",") != test.want || answer.Node != "node-a" {
			t.Errorf("%s: node %s, %v; want %s", test.query, answer.Node, got, test.want)
		}
	}
}

func TestTap(t *testing.T) {
	s, l := flowServer(t)
	client, _ := start(t, s)
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://tacit/tap?outcome=denied", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: client.Transport}).Do(request) // the other one's timeout would end the tap
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	next := func() (line TapLine) {
		t.Helper()
		for lines.Scan() {
			if text := strings.TrimSpace(lines.Text()); text != "" {
				if err := json.Unmarshal([]byte(text), &line); err != nil {
					t.Fatalf("%v: %s", err, text)
				}
				return line
			}
		}
		t.Fatalf("the tap has ended: %v", lines.Err())
		return line
	}
	if first := next(); first.Node != "node-a" || first.Flow != nil {
		t.Errorf("first line %+v", first)
	}
	for i := range 3 { // of which the later ones come while the tap is open for long
		l.Add(flow("shop/frontend", "shop/backend-1", "ok"))
		l.Add(flow("shop/frontend", fmt.Sprint("shop/backend-", i%2+1), "denied"))
		if f := next().Flow; f == nil || f.Outcome != "denied" || f.Destination.Pod != fmt.Sprint("backend-", i%2+1) {
			t.Errorf("denial %d: %+v", i, f)
		}
	}
	// An open tap is alive for longer than any question may take to be asked.
	for began := time.Now(); time.Since(began) < readTimeout+time.Second; {
		if !lines.Scan() {
			t.Fatalf("the tap has ended after %v: %v", time.Since(began), lines.Err())
		}
	}
	hangUp()
	for l.HasTaps() {
		if _, body := get(t, client, "/status"); len(body) == 0 { // gives the server time to notice
			t.Fatal("no status")
		}
	}
}

func TestTapsAreBounded(t *testing.T) {
	s, l := flowServer(t)
	client, _ := start(t, s)
	for {
		if _, err := l.Tap(nil); err != nil {
			break
		}
	}
	if code, body := get(t, client, "/tap"); code != http.StatusTooManyRequests || !strings.Contains(string(body), "close one") {
		t.Errorf("%d %s", code, body)
	}
	if code, body := get(t, client, "/tap?"+url.Values{"from": {"shop/fronted"}}.Encode()); code != http.StatusBadRequest || !strings.Contains(string(body), "did you mean shop/frontend?") {
		t.Errorf("%d %s", code, body)
	}
	s.Flows = nil
	if code, body := get(t, client, "/tap"); code != http.StatusNotFound || !strings.Contains(string(body), "--flows 0") {
		t.Errorf("%d %s", code, body)
	}
}

func TestNearest(t *testing.T) {
	names := map[string]struct{}{}
	for _, name := range []string{"shop/frontend", "shop/frontend-7d4b9", "shop/front", "web/frontends", "shop/", "other/backend"} {
		names[name] = struct{}{}
	}
	for name, want := range map[string]string{
		"frontend":      "shop/frontend shop/frontend-7d4b9", // without its namespace
		"shop/frontent": "shop/frontend shop/front",
		"shp/":          "shop/",
		"nothing/here":  "",
	} {
		if got := strings.Join(nearest(names, name), " "); got != want {
			t.Errorf("near %s: %q, want %q", name, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "abc", 0}, {"abc", "abd", 1}, {"abc", "ab", 1}, {"kitten", "sitting", 3}, {"abcd", "bcda", 2}} {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("from %q to %q: %d, want %d", test.a, test.b, got, test.want)
		}
	}
}
