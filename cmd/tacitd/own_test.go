package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/servers"
	"github.com/tacit-mesh/tacit/test/world"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
)

// What tacitd shows is SPIRE's, once its entry has the name that proxies look
// for.
func TestOwnCertificateFromSPIRE(t *testing.T) {
	s := servers.StartSPIRE(t, servers.SPIREConfig{TrustDomain: "td.test", Life: time.Hour, UID: os.Getuid()})
	f := newFixture(t)
	defer f.run(options{
		from: f.path("manifests"), listen: "127.0.0.1:0", caDir: f.path("ca"), tokens: f.path("tokens"), serverName: serverName,
		workloadAPI: s.WorkloadSocket(),
		settings:    build.Settings{TrustDomain: "td.test", Skips: model.SkipSettings{Mode: model.SkipsAny}},
	})()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(s.Bundle())) {
		t.Fatal("no bundle")
	}
	handshake := func() (*x509.Certificate, error) {
		c, err := (&tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: serverName}}).DialContext(t.Context(), "tcp", f.address)
		if err != nil {
			return nil, err
		}
		defer func() { _ = c.Close() }()
		return c.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
	}
	process := []string{"unix:uid:" + strconv.Itoa(os.Getuid())}
	nameless := s.Entry("/ns/tacit-system/sa/tacitd", process)
	if _, err := handshake(); err == nil {
		t.Error("a certificate without the name is shown")
	}
	s.Delete(nameless)
	s.Entry("/ns/tacit-system/sa/tacitd", process, "-dns", serverName)
	if err := world.Poll(t.Context(), func() error {
		c, err := handshake()
		if err == nil && (len(c.URIs) != 1 || !strings.HasSuffix(c.URIs[0].String(), "/sa/tacitd")) {
			err = errors.New("not SPIRE's")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestWorkloadAPIFlags(t *testing.T) {
	for name, test := range map[string]struct {
		o    options
		want string
	}{
		"an id alone":     {options{spiffeID: "spiffe://td/ns/a/sa/b"}, "--spiffe-id has no effect"},
		"a relative path": {options{workloadAPI: "agent.sock"}, "absolute path"},
		"no id of ours":   {options{workloadAPI: "/agent.sock", spiffeID: "spiffe://td/x"}, "--spiffe-id"},
	} {
		test.o.maxTTL = time.Hour
		if err := test.o.check(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
