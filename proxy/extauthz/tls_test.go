package extauthz

import (
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Over TLS a provider decides that has a certificate of its roots for its name,
// and no other.
func TestTLS(t *testing.T) {
	web := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer web.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&web.TLS.Certificates[0])))
	authv3.RegisterAuthorizationServer(s, &authorizer{asked: make(chan *authv3.CheckRequest, 10)})
	go func() { _ = s.Serve(l) }()
	defer s.Stop()
	own := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}))
	c := New(dial)
	defer c.Close()
	for name, to := range map[string]*model.Provider{
		"gRPC": declared(t, model.ProviderGRPC, l.Addr()), "HTTP": declared(t, model.ProviderHTTP, web.Listener.Addr()),
	} {
		for _, test := range []struct {
			name, serverName, roots string
			decides                 bool
		}{
			{"by its address", "", own, true},
			{"by its name", "example.com", own, true},
			{"another name", "other.example", own, false},
			{"roots of the machine", "", "", false},
			{"roots that are none", "", "PEM", false},
		} {
			to.TLS, to.ServerName, to.Roots = true, test.serverName, test.roots
			answer, err := c.Ask(t.Context(), to, question("admin"))
			if decides := err == nil && answer.Allowed; decides != test.decides {
				t.Errorf("%s, %s: %+v, %v", name, test.name, answer, err)
			}
		}
		to.TLS = false
		if answer, err := c.Ask(t.Context(), to, question("admin")); err == nil && answer.Allowed {
			t.Errorf("%s: asked in clear, it decides", name)
		}
	}
}
