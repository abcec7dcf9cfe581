package identity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// callers has a policy name the clients by their trust domain.
func callers(trustDomain string) string {
	return `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: mesh}
spec:
  rules: [{from: [{source: {principals: ["` + trustDomain + `/ns/mesh/sa/client", "` + trustDomain + `/ns/mesh/sa/near"]}}]}]
`
}

// migration is a mesh whose trust domain gets another name.
type migration struct {
	*e2e.Mesh
	t      *testing.T
	config string // the file of tacitd --mesh-config
}

func startMigration(t *testing.T) *migration {
	t.Helper()
	x := &migration{t: t, config: filepath.Join(t.TempDir(), "mesh.yaml")}
	x.configure()
	x.Mesh = e2e.StartWith(t, world.Config{
		ControlArgs: []string{"--trust-domain=old.example", "--mesh-config=" + x.config},
		AgentArgs:   []string{"--trust-domain=old.example"},
	}, nginx, callers("old.example"))
	x.Serve("mesh/server", ":8080", e2e.Echo)
	return x
}

func (x *migration) configure(aliases ...string) {
	x.t.Helper()
	if err := os.WriteFile(x.config, []byte("trustDomainAliases: ["+strings.Join(aliases, ", ")+"]"), 0o600); err != nil {
		x.t.Fatal(err)
	}
}

// control restarts tacitd, and waits until all proxies have heard of the names.
func (x *migration) control(trustDomain string, aliases ...string) {
	x.t.Helper()
	x.configure(aliases...)
	x.Reconfigure(func(c *world.Config) { c.ControlArgs[0] = "--trust-domain=" + trustDomain })
	restartControl(x.t, x.Mesh)
	x.Eventually("the nodes know "+trustDomain, func() error {
		for _, node := range x.Nodes() {
			var dump struct {
				Workloads []struct {
					Identity           string
					TrustDomainAliases []string
				}
			}
			if err := x.Admin(node.Name, "/dump", &dump); err != nil {
				return err
			}
			for _, w := range dump.Workloads {
				if !strings.HasPrefix(w.Identity, "spiffe://"+trustDomain+"/") || !slices.Equal(w.TrustDomainAliases, aliases) {
					return fmt.Errorf("node %s knows %+v", node.Name, w)
				}
			}
		}
		return nil
	})
}

// agents are restarted one after the other, as a roll of their DaemonSet does;
// proxies and pods are not.
func (x *migration) agents(trustDomain string, traffic *load) {
	x.t.Helper()
	x.Reconfigure(func(c *world.Config) { c.AgentArgs[0] = "--trust-domain=" + trustDomain })
	for _, node := range x.Nodes() {
		if err := errors.Join(node.Agent().Kill(), node.StartAgent(x.Context())); err != nil {
			x.t.Fatal(err)
		}
		x.Eventually("certificates of "+trustDomain, func() error {
			var answer struct {
				Certificates []struct{ Identity, Serial string }
			}
			if err := x.Admin(node.Name, "/certificates", &answer); err != nil {
				return err
			}
			for _, c := range answer.Certificates {
				if !strings.HasPrefix(c.Identity, "spiffe://"+trustDomain+"/") || c.Serial == "" {
					return fmt.Errorf("node %s has %+v", node.Name, c)
				}
			}
			return nil
		})
		traffic.goOn()
	}
}

// A trust domain gets another name, step by step, and no connection notices,
// whatever mixture of names there is on the way. Once the old name is none of
// its aliases any more, it is nobody's.
func TestTrustDomainMigration(t *testing.T) {
	x := startMigration(t)
	dir := filepath.Join(filepath.Dir(x.NetnsDir()), "ca")
	former, future := forged(t, dir, "old.example"), forged(t, dir, "new.example")
	if err := show(t, x.Mesh, future); err == nil {
		t.Error("the future name is accepted before anybody has said that it is one")
	}
	traffic := everyWay(t, x.Mesh)
	traffic.goOn()
	x.control("old.example", "new.example")
	if err := show(t, x.Mesh, future); err != nil {
		t.Errorf("an alias: %v", err)
	}
	traffic.goOn()
	x.agents("new.example", traffic)
	x.control("new.example", "old.example")
	if err := show(t, x.Mesh, former); err != nil {
		t.Errorf("the former name, which is an alias: %v", err)
	}
	traffic.goOn()
	x.MustApply(callers("new.example"))
	x.Eventually("the policy of the new name", func() error {
		text, err := x.AdminText("b", "/dump")
		if err == nil && !strings.Contains(string(text), "new.example/ns/mesh/sa/client") {
			err = errors.New("it is not there")
		}
		return err
	})
	traffic.goOn()
	traffic.finish()
	x.control("new.example")
	if err := show(t, x.Mesh, former); err == nil || !strings.Contains(err.Error(), "remote error: tls") {
		t.Errorf("the former name, which is none any more: %v, want a refusal", err)
	}
	if _, err := x.Call("mesh/client", server); err != nil {
		t.Errorf("after all: %v", err)
	}
}
