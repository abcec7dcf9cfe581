package proxy

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

// A bypass lets requests live to their end, and no new ones in behind its own,
// on whichever connection they come.
func TestRequestsBehindBypass(t *testing.T) {
	for version := 1; version <= 2; version++ {
		t.Run(fmt.Sprint("HTTP/", version), func(t *testing.T) { requestsBehindBypass(t, version) })
	}
}

func requestsBehindBypass(t *testing.T, version int) {
	begun, end := make(chan struct{}), make(chan struct{})
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/secret/slow" {
			close(begun)
			<-end
		}
	}))
	app.Config.Protocols = new(http.Protocols)
	app.Config.Protocols.SetHTTP1(true)
	app.Config.Protocols.SetUnencryptedHTTP2(true)
	app.Start()
	defer app.Close()
	match := model.HTTPMatch{Paths: []model.StringMatch{{Kind: model.MatchPrefix, Value: "/secret"}}}
	s := startOneServer(t, app.Listener.Addr(), &model.Policy{
		Name: "deny", Namespace: "mesh", Scope: model.ScopeNamespace, Action: model.ActionDeny,
		Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{HTTP: &match}}}}}},
	})
	bypassed := func(by string) {
		w := *s.State.Snapshot().Workload("k//Pod/mesh/server")
		w.Bypass = by
		s.State.Apply(model.Update{Workloads: []*model.Workload{&w}})
	}
	status := func(client *http.Client, path string) (status int, reused bool) {
		r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused },
		}), http.MethodGet, "http://server"+path, nil)
		if err != nil {
			t.Error(err)
			return 0, false
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Error(err)
			return 0, false
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		return answer.StatusCode, reused
	}
	bypassed("mesh/b")
	client, slow := s.client(t, version), make(chan int, 1)
	if got, _ := status(client, "/secret"); got != 200 {
		t.Fatalf("%d under the bypass", got)
	}
	go func() {
		got, _ := status(s.client(t, version), "/secret/slow")
		slow <- got
	}()
	<-begun
	bypassed("")
	if got, reused := status(client, "/secret"); got != 403 || !reused {
		t.Errorf("%d behind the bypass, on the same connection %v", got, reused)
	}
	if got, reused := status(client, "/"); got != 200 || !reused {
		t.Errorf("%d for what no policy denies, on the same connection %v", got, reused)
	}
	close(end)
	if got := <-slow; got != 200 {
		t.Errorf("%d for a request from before the bypass's end", got)
	}
}
