package page

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/hour"
	"github.com/tacit-mesh/tacit/xds/api/sight"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// person sees some namespaces; nil sees all.
type person []string

func (p person) Sees(_ context.Context, namespace string) bool {
	return p == nil || namespace != "" && slices.Contains(p, namespace)
}

// door lets in whoever says the word.
type door struct{ viewer Viewer }

func (d *door) Challenge() (string, error) { return "word", nil }

func (d *door) Open(_ context.Context, p Proof) (Viewer, error) {
	if p.Request != "friend" {
		return nil, errors.New("not a friend")
	}
	return d.viewer, nil
}

func (d *door) viewerSees(namespace string) bool {
	return d.viewer.Sees(context.Background(), namespace)
}

// markup is a name that no Kubernetes gives, but a node may claim.
const markup = `<img src=x onerror="document.title='owned'">`

// served is a mesh of workloads that talk to each other: those of namespace i
// to those of the next one, some in clear and some denied.
type served struct {
	*httptest.Server
	hour     *hour.Hour
	door     *door
	sequence uint64
}

func serve(t *testing.T, namespaces, workloads int) *served {
	t.Helper()
	u := model.Update{AddressesComplete: true, PoliciesComplete: true, Policies: []*model.Policy{{Name: "only-web", Namespace: "team-01", Scope: model.ScopeNamespace, Action: model.ActionAllow}}}
	for i := range workloads {
		ns, name := fmt.Sprintf("team-%02d", i%namespaces), fmt.Sprintf("app-%04d", i)
		u.Workloads = append(u.Workloads, &model.Workload{
			UID: "c//Pod/" + ns + "/" + name + "-x", Namespace: ns, Name: name + "-x", WorkloadName: name, ServiceAccount: name, TrustDomain: "cluster.local",
			Protocol: model.ProtocolHBONE, Node: fmt.Sprint("n", i%3), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})},
		})
	}
	mesh := model.NewSnapshot().Apply(u)
	s := &served{hour: hour.New(), door: &door{viewer: person(nil)}}
	page := &Server{Hour: s.hour, Mesh: func() *model.Snapshot { return mesh }, Silent: func(time.Time) []string { return []string{"n2"} }, Door: s.door,
		Lacks: func(policy string) []string {
			return map[string][]string{"team-01/only-web": {"not enforced on port 80 of pods app-0001-x"}}[policy]
		}}
	s.Server = httptest.NewServer(page.Handler())
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() }) // events go on until their reader goes
	now := time.Now()
	summary := &sight.Summary{Minute: now.Unix() / 60}
	for i := range workloads {
		for j := range 2 {
			summary.Pairs = append(summary.Pairs, pair(i%namespaces, i, (i+1)%namespaces, (i+1+j*namespaces)%workloads))
		}
	}
	summary.Denials = append(summary.Denials, denial(now))
	summary.Certificates, summary.ListsCertificates = []*sight.Certificate{{Identity: "spiffe://cluster.local/ns/team-01/sa/app-0001", NotAfter: now.Add(time.Hour).Unix()}}, true
	s.take(summary)
	return s
}

func (s *served) take(summary *sight.Summary) {
	s.sequence++
	summary.Sequence = s.sequence
	s.hour.Take("n1", summary, time.Now())
}

func pair(fromNS, from, toNS, to int) *sight.Pair {
	p := &sight.Pair{
		Inbound: true, Security: "mtls", Connections: uint64(1 + from%50), Requests: 3, Sent: 4096, Latency: []uint64{0, 1, 5, 2},
		Source:      &sight.Party{Namespace: fmt.Sprintf("team-%02d", fromNS), Name: fmt.Sprintf("app-%04d", from)},
		Destination: &sight.Party{Namespace: fmt.Sprintf("team-%02d", toNS), Name: fmt.Sprintf("app-%04d", to)},
	}
	switch {
	case from%7 == 0:
		p.Security, p.Why = "plain", "client_not_enrolled"
	case from%11 == 0:
		p.Denied = 2
	}
	return p
}

func denial(at time.Time) *sight.Denial {
	return &sight.Denial{
		Id: "4bf92f3577b34da6a3ce929d0e0e4736", TimeMicros: at.UnixMicro(), Inbound: true,
		Source: &sight.Party{Namespace: "team-00", Name: markup}, SourcePod: markup, SourceAddress: "198.18.0.0",
		Destination: &sight.Party{Namespace: "team-01", Name: "app-0001"}, DestinationPod: "app-0001-x", DestinationAddress: "198.18.0.1:8080",
		SourceIdentity: "spiffe://cluster.local/ns/team-00/sa/app-0000", Security: "mtls",
		Policy: "team-01/only-web", Reason: "not_allowed", Attribute: "principals",
	}
}

// entrance gets a token as tacit ui does.
func (s *served) entrance(t *testing.T) string {
	t.Helper()
	var e Entrance
	if code := s.post(t, `{"request":"friend"}`, &e); code != http.StatusOK || e.Token == "" {
		t.Fatalf("login answers %d, %+v", code, e)
	}
	return s.URL + "/enter?token=" + e.Token
}

func (s *served) post(t *testing.T, body string, into any, edits ...func(*http.Request)) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/login", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	return s.do(t, r, into, edits...)
}

func (s *served) do(t *testing.T, r *http.Request, into any, edits ...func(*http.Request)) int {
	t.Helper()
	for _, edit := range edits {
		edit(r)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if into != nil {
		if cookie, ok := into.(*http.Cookie); ok {
			for _, c := range response.Cookies() {
				*cookie = *c
			}
		} else if err := json.Unmarshal(text, into); err != nil {
			t.Fatalf("%s answers %s: %v", r.URL, text, err)
		}
	}
	return response.StatusCode
}

func (s *served) get(t *testing.T, where string, into any, edits ...func(*http.Request)) int {
	t.Helper()
	if !strings.HasPrefix(where, "http") {
		where = s.URL + where
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, where, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s.do(t, r, into, edits...)
}

func (s *served) session(t *testing.T) func(*http.Request) {
	t.Helper()
	var cookie http.Cookie
	if code := s.get(t, s.entrance(t), &cookie); code != http.StatusSeeOther || cookie.Value == "" {
		t.Fatalf("enter answers %d", code)
	}
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode {
		t.Errorf("the cookie is %v", &cookie)
	}
	return func(r *http.Request) { r.AddCookie(&cookie) }
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func TestWhoIsLetIn(t *testing.T) {
	s := serve(t, 2, 4)
	if code := s.post(t, `{"request":"stranger"}`, nil); code != http.StatusForbidden {
		t.Errorf("a stranger's proof: %d", code)
	}
	for name, edit := range map[string]func(*http.Request){"a page's origin": header("Origin", s.URL), "a form's type": header("Content-Type", "text/plain")} {
		if code := s.post(t, `{"request":"friend"}`, nil, edit); code != http.StatusForbidden {
			t.Errorf("login with %s: %d", name, code)
		}
	}
	for _, path := range []string{"/", "/map.js", "/api/map", "/api/workload?namespace=team-01&name=app-0001", "/api/events", "/enter?token=x", "/enter"} {
		if code := s.get(t, path, nil); code != http.StatusUnauthorized && code != http.StatusForbidden {
			t.Errorf("%s without a session: %d", path, code)
		}
	}
	once := s.entrance(t)
	if code := s.get(t, once, nil); code != http.StatusSeeOther {
		t.Errorf("the token: %d", code)
	}
	if code := s.get(t, once, nil); code != http.StatusForbidden {
		t.Errorf("the token once more: %d", code)
	}
	in := s.session(t)
	if code := s.get(t, "/api/map", nil, in); code != http.StatusOK {
		t.Errorf("with a session: %d", code)
	}
	for name, edit := range map[string]func(*http.Request){
		"another name": func(r *http.Request) { r.Host = "evil.test" }, "a name like ours": func(r *http.Request) { r.Host = "127.0.0.1.evil.test:80" },
		"another origin": header("Origin", "http://evil.test"), "another port's origin": header("Origin", "http://127.0.0.1:1"), "no origin": header("Origin", "null"),
		"another site": header("Sec-Fetch-Site", "cross-site"), "another port": header("Sec-Fetch-Site", "same-site"),
	} {
		if code := s.get(t, "/api/map", nil, in, edit); code != http.StatusForbidden && code != http.StatusMisdirectedRequest {
			t.Errorf("with a session, and %s: %d", name, code)
		}
	}
	for name, edit := range map[string]func(*http.Request){"localhost": func(r *http.Request) { r.Host = "localhost:9" }, "IPv6": func(r *http.Request) { r.Host = "[::1]:9" }, "the page": header("Origin", s.URL)} {
		if code := s.get(t, "/api/map", nil, in, edit); code != http.StatusOK {
			t.Errorf("with a session, and %s: %d", name, code)
		}
	}
}

func TestTokensAndSessionsEnd(t *testing.T) {
	var r rooms
	now := time.Now()
	token := add(&r.tokens, person(nil), tokenLife, now)
	if r.session(token, now.Add(tokenLife+time.Second)) != "" {
		t.Error("an old token is good")
	}
	token = add(&r.tokens, person(nil), tokenLife, now)
	session := r.session(token, now)
	if r.viewer(session, now) == nil || r.viewer(session, now.Add(sessionLife+time.Second)) != nil || r.viewer("", now) != nil {
		t.Error("a session is good for too long, or too short")
	}
	for range 2 * maxWaiting {
		add(&r.tokens, person(nil), tokenLife, now)
	}
	if len(r.tokens) != maxWaiting {
		t.Errorf("%d tokens are good", len(r.tokens))
	}
	if add(&r.tokens, person(nil), tokenLife, now.Add(2*tokenLife)) == "" {
		t.Error("old tokens keep new ones out")
	}
}

// Who sees one namespace sees what has an end there, and nothing of who is at
// the other.
func TestNamespacesOfOthersAreHidden(t *testing.T) {
	s := serve(t, 3, 9)
	s.door.viewer = person{"team-01"}
	in := s.session(t)
	var text json.RawMessage
	if code := s.get(t, "/api/map", &text, in); code != http.StatusOK {
		t.Fatalf("the map: %d", code)
	}
	var m Map
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	if !m.Partly || m.Missing != 1 || len(m.Nodes) != 0 || len(m.Workloads) != 4 || strings.Contains(string(text), "team-00") || strings.Contains(string(text), "team-02") {
		t.Errorf("the map: %s", text)
	}
	for _, e := range m.Edges {
		if from, to := m.Workloads[e.From], m.Workloads[e.To]; from.Namespace != "team-01" && to.Namespace != "team-01" {
			t.Errorf("an edge of others: %v to %v", from, to)
		}
	}
	if code := s.get(t, "/api/workload?namespace=team-00&name=app-0000", nil, in); code != http.StatusNotFound {
		t.Errorf("a workload of others: %d", code)
	}
	if code := s.get(t, "/api/workload?namespace=team-01&name=app-0001", &text, in); code != http.StatusOK || strings.Contains(string(text), "team-00") || strings.Contains(string(text), "img") {
		t.Errorf("a workload that others called: %d, %s", code, text)
	}
	var d Detail
	if err := json.Unmarshal(text, &d); err != nil || d.In.Share != 0.875 || len(d.Denials) != 1 || d.Denials[0].Policy != "team-01/only-web" || len(d.Policies) != 1 || len(d.Certificates) != 1 {
		t.Errorf("%v, %s", err, text)
	}
	if len(d.Policies[0].Lacks) != 1 || !strings.Contains(d.Policies[0].Lacks[0], "of pods app-0001-x") {
		t.Errorf("how far the policy is enforced: %+v", d.Policies)
	}
	of := &Server{Lacks: func(string) []string { return []string{"not enforced on pods of others"} }}
	if got := of.lacks("root/all", s.door.viewerSees); len(got) != 1 || strings.Contains(got[0], "others") {
		t.Errorf("of a policy of another namespace: %v", got)
	}
}

func TestExplanation(t *testing.T) {
	all := func(string) bool { return true }
	d := hour.Denial{
		ID: "4bf92f", Inbound: true, Source: flows.Party{Namespace: "web", Name: "frontend"}, SourcePod: "frontend-1", SourceAddress: "198.18.1.1",
		Destination: flows.Party{Namespace: "shop", Name: "api"}, DestinationPod: "api-1", DestinationAddress: "198.18.2.1:8080",
		SourceIdentity: "spiffe://c/ns/web/sa/frontend", Policy: "shop/only-jobs", Reason: "not_allowed", Attribute: "principals", Weight: 3,
	}
	want := `web/frontend-1 (198.18.1.1) opened a connection to shop/api-1 (198.18.2.1:8080).
It proved to be spiffe://c/ns/web/sa/frontend, by mutual TLS.
Denied: no ALLOW policy matched; closest was shop/only-jobs (not matched: principals).
It stands for 3 like it.`
	e := explain(veil(d, all))
	if got := strings.Join(e.Steps, "\n"); got != want {
		t.Errorf("explained as:\n%s\nwant:\n%s", got, want)
	}
	if e.Change != "Name the client in an ALLOW policy such as shop/only-jobs." {
		t.Errorf("to change it: %s", e.Change)
	}
	plain := d
	plain.SourceIdentity, plain.Why, plain.Source, plain.SourcePod = "", flows.WhyClientNotInMesh, flows.Party{}, ""
	if got := strings.Join(explain(plain).Steps, "\n"); !strings.Contains(got, "It came in clear, so it has no identity: client not enrolled.") {
		t.Errorf("explained as:\n%s", got)
	}
	veiled := explain(veil(d, func(ns string) bool { return ns == "web" }))
	if text := strings.Join(veiled.Steps, "\n") + veiled.Change; strings.Contains(text, "shop") {
		t.Errorf("to those who may not see shop:\n%s", text)
	}
}

func TestQuestions(t *testing.T) {
	s := serve(t, 2, 4)
	in := s.session(t)
	for _, q := range []string{"minutes=0", "minutes=61", "minutes=x", "until=-1", "until=x", "until=9999999999999999"} {
		if code := s.get(t, "/api/map?"+q, nil, in); code != http.StatusBadRequest {
			t.Errorf("%s: %d", q, code)
		}
	}
	var m Map
	s.get(t, fmt.Sprintf("/api/map?until=%d", time.Now().Add(-30*time.Minute).Unix()), &m, in)
	if len(m.Edges) != 0 || len(m.Workloads) != 4 {
		t.Errorf("half an hour ago: %+v", m)
	}
}
