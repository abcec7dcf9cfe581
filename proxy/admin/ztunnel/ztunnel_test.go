package ztunnel

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/xds/model"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

var webID = model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}

// server knows a little of everything.
func server(t *testing.T) *Server {
	t.Helper()
	const key = "shop/web.shop.svc.cluster.local"
	gate := model.Gateway{Service: "shop/gate.shop.svc.cluster.local", Port: 15008}
	exact := func(s string) []model.StringMatch { return []model.StringMatch{model.ParseStringMatch(s)} }
	snapshot := model.NewSnapshot().Apply(model.Update{
		Workloads: []*model.Workload{
			{
				UID: "c//Pod/shop/web", Name: "web", Namespace: "shop", ServiceAccount: "web", TrustDomain: "cluster.local", Network: "n1",
				Addresses: []netip.Addr{addr("10.0.0.1"), addr("fd00::1")}, Protocol: model.ProtocolHBONE, Capacity: 1, Node: "a", ClusterID: "c",
				WorkloadType: model.TypeDeployment, WorkloadName: "web", CanonicalName: "web", CanonicalRevision: "v1", Policies: []string{"shop/some"},
				Locality: model.Locality{Region: "r", Zone: "z"}, Services: map[string][]model.Port{key: {{Service: 80, Target: 9090}}},
				Waypoint: &model.Gateway{Network: "n1", Address: addr("10.1.0.9"), Port: 15008},
			},
			{UID: "vm", Name: "vm", Namespace: "shop", ServiceAccount: "default", TrustDomain: "cluster.local", Unhealthy: true, WorkloadType: model.TypePod, Hostname: "vm.example"},
		},
		Services: []*model.Service{{
			Name: "web", Namespace: "shop", Hostname: "web.shop.svc.cluster.local", Ports: []model.Port{{Service: 80, Target: 8080}, {Service: 81}},
			Addresses: []model.NetworkAddress{
				{Network: "n1", Prefix: netip.MustParsePrefix("10.1.0.1/32")}, {Network: "n1", Prefix: netip.MustParsePrefix("10.2.0.0/16")},
			},
			SANs: []string{"spiffe://other/ns/a/sa/b"}, Private: true, Canonical: true, Balance: model.BalanceFailover, Prefer: []model.Scope{model.ScopeNetwork, model.ScopeRegion},
			Waypoints: []model.WeightedGateway{{Gateway: gate, Weight: 1}},
		}},
		Policies: []*model.Policy{
			{Namespace: "shop", Name: "some", Scope: model.ScopeSelector, Action: model.ActionDeny, Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{
				Principals: exact("td/*"), NotNamespaces: exact("*x"), NotPrincipals: exact("*"), Namespaces: exact("a"), DestinationPorts: []uint16{80},
				SourceIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, ServiceAccounts: []model.ServiceAccount{{Namespace: "a", Name: "b"}},
			}}}}}}},
			{Namespace: "shop", Name: "tokens", Action: model.ActionAuthenticate}, // which ztunnel has none of
		},
	})
	return &Server{
		Level: zap.NewAtomicLevel(), Snapshot: func() *model.Snapshot { return snapshot },
		Pods: func() []Pod { return []Pod{{"uid-1", "shop/web", webID}} },
		Certificates: func() []Certificate {
			return []Certificate{{Identity: webID}, {Identity: webID, Err: errors.New("refused")}}
		},
		Live: func() []admin.Connection {
			return []admin.Connection{
				{Direction: "outbound", Security: "mtls", Source: admin.End{Workload: "shop/web", Address: addrPort("10.0.0.1:4000")}, Original: addrPort("10.1.0.1:80"), Tunnel: addrPort("10.0.0.2:15008"), Destination: admin.End{Address: addrPort("10.0.0.2:8080")}},
				{Direction: "inbound", Security: "plain", Source: admin.End{Address: addrPort("10.0.0.7:4001")}, Destination: admin.End{Workload: "shop/web", Address: addrPort("10.0.0.1:80")}},
				{Direction: "inbound", Destination: admin.End{Workload: "shop/gone"}},
			}
		},
	}
}

func ask(t *testing.T, s *Server, method, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(method, path, http.NoBody))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(body)
}

// The names and forms are what istioctl decodes.
func TestDump(t *testing.T) {
	code, body := ask(t, server(t), http.MethodGet, "/config_dump")
	want, err := os.ReadFile(filepath.Join("testdata", "dump.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got, wanted any
	if err := errors.Join(json.Unmarshal([]byte(body), &got), json.Unmarshal(want, &wanted)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wanted, got); code != http.StatusOK || diff != "" {
		t.Errorf("%d, -want +got:\n%s\nin all %s", code, diff, body)
	}
}

func TestCertificates(t *testing.T) {
	ca := identitytest.NewCA(t)
	m := ca.Issue(t, webID)
	s := server(t)
	s.Certificates = func() []Certificate {
		return []Certificate{{Identity: webID, Leaf: m.Leaf, Authorities: m.Authorities}}
	}
	_, body := ask(t, s, http.MethodGet, "/config_dump")
	var got dump
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	c := got.Certificates[0]
	if c.State != "Available" || len(c.CertChain) != 1 || len(c.RootCerts) != 1 || c.CertChain[0].SerialNumber != m.Leaf.SerialNumber.String() ||
		!strings.HasPrefix(c.CertChain[0].PEM, "-----BEGIN CERTIFICATE-----") || c.CertChain[0].ExpirationTime != m.NotAfter().UTC().Format("2006-01-02T15:04:05Z") {
		t.Errorf("%+v", c)
	}
	if strings.Contains(body, "PRIVATE KEY") {
		t.Error("it has a private key")
	}
}

func TestEmpty(t *testing.T) {
	s := server(t)
	s.Snapshot = model.NewSnapshot
	s.Certificates, s.Pods, s.Live = func() []Certificate { return nil }, func() []Pod { return nil }, func() []admin.Connection { return nil }
	if _, body := ask(t, s, http.MethodGet, "/config_dump"); body != `{"workloads":[],"services":[],"policies":[],"certificates":[],"workloadState":{}}`+"\n" {
		t.Error(body)
	}
}

func TestLogging(t *testing.T) {
	s := server(t)
	for _, tt := range []struct {
		method, path string
		code         int
		level        zapcore.Level
	}{
		{http.MethodGet, "/logging", 200, zapcore.InfoLevel},
		{http.MethodGet, "/logging?level=debug", 200, zapcore.InfoLevel}, // asks, and changes nothing
		{http.MethodPost, "/logging?level=debug", 200, zapcore.DebugLevel},
		{http.MethodPost, "/logging", 200, zapcore.DebugLevel},
		{http.MethodPost, "/logging?level=TRACE", 200, zapcore.DebugLevel},
		{http.MethodPost, "/logging?level=warn", 200, zapcore.WarnLevel},
		{http.MethodPost, "/logging?level=proxy:debug", 400, zapcore.WarnLevel},
		{http.MethodPost, "/logging?reset", 200, zapcore.InfoLevel},
		{http.MethodPost, "/logging?level=off", 200, zapcore.FatalLevel},
		{http.MethodPost, "/quitquitquit", 404, zapcore.FatalLevel},
	} {
		code, body := ask(t, s, tt.method, tt.path)
		if code != tt.code || s.Level.Level() != tt.level || code == 200 && body != "current log level is "+tt.level.String()+"\n" {
			t.Errorf("%s %s: %d, level %v, %q", tt.method, tt.path, code, s.Level, body)
		}
	}
	if code, _ := ask(t, s, http.MethodGet, "/debug/pprof/goroutine?debug=1"); code != http.StatusOK {
		t.Errorf("profiles: %d", code)
	}
}
