package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Connections of TLS that pass through are decided on by the name that the
// client asks for, and ended when a policy about it comes.
func TestServerNamesDecide(t *testing.T) {
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	app.Config.ErrorLog = log.New(io.Discard, "", 0) // of connections that are denied
	app.StartTLS()
	defer app.Close()
	named := func(action model.Action, match model.HTTPMatch) *model.Policy {
		return &model.Policy{
			Name: "sni", Namespace: "mesh", Scope: model.ScopeNamespace, Action: action,
			Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{HTTP: &match}}}}}},
		}
	}
	secret := []model.StringMatch{{Kind: model.MatchSuffix, Value: ".secret.example"}}
	s := startOneServer(t, app.Listener.Addr())
	greet := func(name string) (*tls.Conn, error) {
		socket, err := s.connect(t)
		if err != nil {
			return nil, err
		}
		c := tls.Client(socket, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		return c, c.Handshake()
	}
	for _, test := range []struct {
		name, serverName string
		policy           *model.Policy
		allowed          bool
	}{
		{"ALLOW", "db.secret.example", named(model.ActionAllow, model.HTTPMatch{ServerNames: secret}), true},
		{"ALLOW of another", "db.example", named(model.ActionAllow, model.HTTPMatch{ServerNames: secret}), false},
		{"ALLOW without a name", "", named(model.ActionAllow, model.HTTPMatch{ServerNames: secret}), false},
		{"DENY", "DB.secret.example", named(model.ActionDeny, model.HTTPMatch{ServerNames: secret}), false},
		{"DENY of another", "db.example", named(model.ActionDeny, model.HTTPMatch{ServerNames: secret}), true},
		{"DENY without a name", "", named(model.ActionDeny, model.HTTPMatch{ServerNames: secret}), false},
		{"DENY of all others", "db.secret.example", named(model.ActionDeny, model.HTTPMatch{NotServerNames: secret}), true},
		{"DENY of all others, another", "db.example", named(model.ActionDeny, model.HTTPMatch{NotServerNames: secret}), false},
		{"DENY of requests", "db.example", named(model.ActionDeny, model.HTTPMatch{ServerNames: secret, Methods: secret}), true},
	} {
		for _, declared := range []model.AppProtocol{model.AppUnknown, model.AppTCP, model.AppTLS} {
			t.Run(fmt.Sprint(test.name, " ", declared), func(t *testing.T) {
				update := declaredTCP()
				update.Workloads[0].Services["mesh/server"][0].AppProtocol = declared
				update.Policies = []*model.Policy{test.policy}
				s.State.Apply(update)
				if c, err := greet(test.serverName); test.allowed != (err == nil) || err != nil && !wasReset(err) && !errors.Is(err, io.EOF) {
					t.Errorf("%v", err)
				} else if err == nil {
					defer func() { _ = c.Close() }()
				}
			})
		}
	}

	update := declaredTCP()
	update.Policies = []*model.Policy{named(model.ActionDeny, model.HTTPMatch{ServerNames: secret})}
	s.State.Apply(update)
	c, err := greet("other.example")
	if err != nil {
		t.Fatal(err)
	}
	s.State.Apply(model.Update{Policies: []*model.Policy{named(model.ActionDeny, model.HTTPMatch{ServerNames: []model.StringMatch{{Value: "other.example"}}})}})
	if _, err := c.Read(make([]byte, 1)); !wasReset(err) {
		t.Errorf("denied meanwhile: %v", err)
	}
}
