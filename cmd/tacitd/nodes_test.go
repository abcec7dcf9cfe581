package main

import (
	"crypto/x509"
	"encoding/json"
	"io"
	"os"
	"regexp"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/tacit-mesh/tacit/xds/wire"
)

const labelPolicy = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: labels, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, rules: [{when: [{key: "source.labels[app]", values: [web]}]}]}
`

// lines is a log whose lines can be waited for.
func lines() (*zap.Logger, <-chan string) {
	out := make(chan string, 1000)
	return zap.NewNop().WithOptions(zap.WrapCore(func(zapcore.Core) zapcore.Core {
		return zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(io.Discard), zapcore.InfoLevel)
	}), zap.Hooks(func(e zapcore.Entry) error {
		out <- e.Message
		return nil
	})), out
}

func await(t *testing.T, lines <-chan string, pattern string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case line := <-lines:
			if regexp.MustCompile(pattern).MatchString(line) {
				return
			}
		case <-deadline:
			t.Fatalf("no line like %s", pattern)
		}
	}
}

// The status of a policy names the nodes whose proxies do not understand all
// of it, for as long as they are connected.
func TestStatusNamesNodesThatLackAnExtension(t *testing.T) {
	f := newFixture(t)
	f.write("manifests/labels.yaml", labelPolicy)
	var log <-chan string
	f.log, log = lines()
	defer f.start("127.0.0.1:0")()
	await(t, log, "^AuthorizationPolicy shop/labels: enforced$")
	hangUp := f.otherProxy("other-token")
	await(t, log, "^AuthorizationPolicy shop/labels: enforced in part: not enforced as written on node n2:")
	var st status
	if data, err := os.ReadFile(f.path("status.json")); err != nil || json.Unmarshal(data, &st) != nil {
		t.Fatalf("status %q, %v", data, err)
	}
	for _, p := range st.Policies {
		if got, want := len(p.Messages), map[string]int{"labels": 1}[p.Name]; got != want || !p.Enforced {
			t.Errorf("policy %s: enforced %v, %q", p.Name, p.Enforced, p.Messages)
		}
	}
	hangUp()
	await(t, log, "^AuthorizationPolicy shop/labels: enforced$")
}

// otherProxy connects one that knows of no extensions.
func (f *fixture) otherProxy(token string) (hangUp func()) {
	_, hangUp = f.stream(token, nil)
	return hangUp
}

// stream opens a stream as a proxy that has addresses already, by their
// versions.
func (f *fixture) stream(token string, known map[string]string) (stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, hangUp func()) {
	f.t.Helper()
	ca, err := os.ReadFile(f.path("ca/ca.crt"))
	if err != nil {
		f.t.Fatal(err)
	}
	secret, err := os.ReadFile(f.path(token))
	if err != nil {
		f.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conn, err := grpc.NewClient(f.address, grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, serverName)))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	ctx := metadata.AppendToOutgoingContext(f.t.Context(), "authorization", "Bearer "+string(secret))
	stream, err = discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	for typeURL, versions := range map[string]map[string]string{wire.AuthorizationType: nil, wire.AddressType: known} {
		if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, InitialResourceVersions: versions}); err != nil {
			f.t.Fatal(err)
		}
	}
	return stream, func() { _ = conn.Close() }
}

// addresses are those that such a proxy is sent first, by their versions.
func (f *fixture) addresses(token string, known map[string]string) map[string]string {
	f.t.Helper()
	stream, hangUp := f.stream(token, known)
	defer hangUp()
	for {
		r, err := stream.Recv()
		if err != nil {
			f.t.Fatal(err)
		}
		if r.GetTypeUrl() != wire.AddressType {
			continue
		}
		out := map[string]string{}
		for _, resource := range r.GetResources() {
			out[resource.GetName()] = resource.GetVersion()
		}
		return out
	}
}
