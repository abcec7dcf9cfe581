package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/page"
	"github.com/tacit-mesh/tacit/sight/report"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
)

// What a proxy tells is on the map, and in the metrics; only who has a node's
// token may tell.
func TestMapAndCoverage(t *testing.T) {
	f := newFixture(t)
	o := options{
		from: f.path("manifests"), listen: "127.0.0.1:0", caDir: f.path("ca"), tokens: f.path("tokens"), serverName: serverName,
		settings: build.Settings{TrustDomain: "cluster.local", Skips: model.SkipSettings{Mode: model.SkipsAny}}, metrics: "127.0.0.1:0",
	}
	o.ui, o.interval = f.path("ui.sock"), time.Second
	up := make(chan string, 1)
	o.listeningUI = func(address string) { up <- address }
	defer f.run(o)()
	select {
	case <-up:
	case <-time.After(patience):
		t.Fatal("the map is not served")
	}
	if info, err := os.Stat(f.path("ui.sock")); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the socket: %v, %v", info.Mode(), err)
	}
	log := flows.New(100, time.Now())
	web := &model.Workload{Namespace: "shop", Name: "web", ServiceAccount: "web", TrustDomain: "cluster.local", Protocol: model.ProtocolHBONE}
	add := func(outcome string) {
		log.Add(&flows.Event{
			Kind: flows.Ended, ID: outcome, Inbound: true, Security: "mtls", Outcome: outcome, Policy: "shop/deny", Reason: "denied", Matched: true, Began: time.Now(), Time: time.Now(),
			Source: flows.End{Name: "caller", Namespace: "other"}, Destination: flows.End{Addr: netip.MustParseAddrPort("198.18.1.1:8080"), Workload: web},
		})
	}
	add("ok")
	add("denied")
	tell := func(token string) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		r := &report.Reporter{
			Server: caclient.Config{Address: f.address, ServerName: serverName, RootsFile: f.path("ca/ca.crt"), TokenFile: f.path(token)}, Flows: log,
			Live: func() iter.Seq[flows.Event] { return slices.Values([]flows.Event{}) }, Certificates: func() []admin.Certificate { return nil }, Roots: func() [][]*x509.Certificate { return nil }, Log: zap.NewNop(),
		}
		go func() { ended <- r.Run(ctx) }()
		return func() { cancel(); <-ended }
	}
	defer tell("bad-token")()
	defer tell("token")()

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", f.path("ui.sock"))
	}}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var e page.Entrance
	response, err := client.Post("http://localhost/login", "application/json", strings.NewReader("{}"))
	decode(t, response, err, &e)
	response, err = client.Get("http://localhost/enter?token=" + e.Token)
	if err != nil || len(response.Cookies()) != 1 {
		t.Fatalf("enter: %v, %v", response, err)
	}
	_ = response.Body.Close()
	session := response.Cookies()[0]
	ask := func(path string, into any) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.AddCookie(session)
		response, err := client.Do(r)
		decode(t, response, err, into)
	}
	// The events say when there is something new.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost/api/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.AddCookie(session)
	events, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	var m page.Map
	buf := make([]byte, 1024)
	for ask("/api/map", &m); len(m.Edges) == 0; ask("/api/map", &m) {
		if _, err := events.Body.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	edge := m.Edges[0]
	if edge.MTLS != 1 || edge.Denied != 1 || m.Workloads[edge.To].Name != "web" || m.Workloads[edge.From].Name != "caller" || m.Missing != 0 {
		t.Errorf("the map: %+v", m)
	}
	var d page.Detail
	ask("/api/workload?namespace=shop&name=web", &d)
	if len(d.Denials) != 1 || !strings.Contains(fmt.Sprint(d.Denials[0].Steps), "Denied by policy shop/deny.") || len(d.Policies) != 1 || d.Policies[0].Last.IsZero() {
		t.Errorf("the panel: %+v", d)
	}
	text := fetch(t, "http://"+f.metrics+"/metrics")
	for _, line := range []string{`tacit_coverage_mtls_ratio{scope="all"} 1`, `tacit_coverage_policy_ratio 1`, `tacit_coverage_nodes_missing 0`} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("the metrics lack %s", line)
		}
	}
}

func decode(t *testing.T, response *http.Response, err error, into any) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s answers %s", response.Request.URL, response.Status)
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		t.Fatal(err)
	}
}

func fetch(t *testing.T, where string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, where, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestWhereTheMapMayBe(t *testing.T) {
	for _, tt := range []struct {
		options    sightOptions
		kubernetes bool
		want       string
	}{
		{sightOptions{}, true, ""}, {sightOptions{ui: "127.0.0.1:15017"}, true, ""}, {sightOptions{ui: "[::1]:15017"}, true, ""}, {sightOptions{ui: "/run/ui.sock"}, false, ""},
		{sightOptions{ui: ":15017"}, true, "loopback"}, {sightOptions{ui: "0.0.0.0:1"}, true, "loopback"}, {sightOptions{ui: "10.0.0.1:1"}, true, "loopback"},
		{sightOptions{ui: "127.0.0.1:15017"}, false, "absolute path"}, {sightOptions{ui: "/run/ui.sock", noFlows: true}, false, "--no-flows"},
	} {
		err := tt.options.checkUI(tt.kubernetes)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt.options, err)
		}
	}
}
