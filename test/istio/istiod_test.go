package istio

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/test/servers"
	"github.com/tacit-mesh/tacit/xds/client"
	"github.com/tacit-mesh/tacit/xds/model"
)

const (
	security      = "security.istio.io/v1"
	serverPod     = "Kubernetes//Pod/mesh/server"
	gonePod       = "Kubernetes//Pod/mesh/gone"
	serverService = "mesh/server.mesh.svc.cluster.local"
	goneService   = "mesh/gone.mesh.svc.cluster.local"
	lateService   = "mesh/late.mesh.svc.cluster.local"
	strictPolicy  = "istio-system/istio_converted_static_strict"
)

// noClient denies one client, by its identity.
const noClient = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: mesh}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {principals: ["cluster.local/ns/mesh/sa/client"]}}]}]`

const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: mesh}
spec: {mtls: {mode: STRICT}}`

const late = `
apiVersion: v1
kind: Service
metadata: {name: late, namespace: mesh}
spec: {clusterIP: 10.96.7.3, selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}`

// Everything that istiod gives, one after the other, as its start is slow.
func TestIstiod(t *testing.T) {
	m := start(t)
	m.deployed()
	p := m.follow("a")
	p.first(t)
	found := m.silence()
	m.demand()
	p.policies(t)
	p.away(t)
	for name, s := range map[string]client.TypeStatus{"addresses": p.client.Status().Addresses, "policies": p.client.Status().Policies} {
		if s.Nacks > 0 || s.LastAck.IsZero() {
			t.Errorf("%s: %+v", name, s)
		}
	}
	m.certificates()
	found(has(serverPod, serverService, lateService), hasNot(gonePod, goneService, "mesh/no-client"))
	m.nodes()
}

// proxy is what the proxy of a node knows.
type proxy struct {
	*mesh
	client *client.Client
	state  *state.State
}

// follow runs the xDS client of a node's proxy until the end of the test.
func (m *mesh) follow(node string) *proxy { return m.followWith(node, func(*client.Config) {}) }

func (m *mesh) followWith(node string, change func(*client.Config)) *proxy {
	m.t.Helper()
	p := &proxy{mesh: m, state: state.New()}
	config := client.Config{
		Known:  p.state.Snapshot,
		Server: m.istiod.Address, ServerName: servers.IstiodName, ClusterID: servers.IstiodCluster,
		RootsFile: m.roots(), TokenFile: m.tokenFile("xds", m.proxyToken(node)), Sink: p.state,
		Node: client.Node{Name: node, Pod: account + "-" + node, Namespace: system, Metadata: map[string]string{"CLUSTER_ID": servers.IstiodCluster}},
	}
	change(&config)
	p.client = client.New(config)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.client.Run(ctx); !errors.Is(err, context.Canceled) {
			m.t.Errorf("Run = %v, want the context's error", err)
		}
	})
	m.t.Cleanup(func() { cancel(); running.Wait() })
	return p
}

// await returns the first snapshot of which all this is so.
func (p *proxy) await(what string, ok ...func(*model.Snapshot) bool) *model.Snapshot {
	p.t.Helper()
	s, err := p.state.Wait(p.context(), func(s *model.Snapshot) bool {
		return !slices.ContainsFunc(ok, func(ok func(*model.Snapshot) bool) bool { return !ok(s) })
	})
	if err != nil {
		p.t.Fatalf("%s: %v; the client: %+v", what, err, p.client.Status())
	}
	return s
}

func has(keys ...string) func(*model.Snapshot) bool {
	return func(s *model.Snapshot) bool {
		return !slices.ContainsFunc(keys, func(k string) bool { return !known(s, k) })
	}
}

func hasNot(keys ...string) func(*model.Snapshot) bool {
	return func(s *model.Snapshot) bool {
		return !slices.ContainsFunc(keys, func(k string) bool { return known(s, k) })
	}
}

// known looks for a workload, a service or a policy.
func known(s *model.Snapshot, key string) bool {
	policy, _ := s.Policy(key)
	return policy != nil || s.Workload(key) != nil || s.Service(key) != nil
}

func (p *proxy) first(t *testing.T) {
	t.Helper()
	s := p.await("workloads and services", (*model.Snapshot).AddressesReady, (*model.Snapshot).PoliciesReady, has(serverPod, gonePod, serverService, goneService))
	<-p.client.Ready()
	w := s.WorkloadAt("", netip.MustParseAddr("198.18.2.10"))
	if w == nil || w.UID != serverPod || w.Protocol != model.ProtocolHBONE || w.Node != "b" || w.Unhealthy ||
		w.Identity().String() != "spiffe://cluster.local/ns/mesh/sa/server" {
		t.Errorf("the server is %+v", w)
	}
	var endpoints []string
	for e := range s.Endpoints(serverService) {
		endpoints = append(endpoints, e.Workload.UID)
	}
	if !slices.Equal(endpoints, []string{serverPod}) {
		t.Errorf("the service has the endpoints %v", endpoints)
	}
	if ports := w.Services[serverService]; len(ports) != 1 || ports[0].Target != 8080 {
		t.Errorf("the named port is %v", ports)
	}
}

func (p *proxy) policies(t *testing.T) {
	t.Helper()
	p.apply(noClient)
	s := p.await("a policy", has("mesh/no-client"), names(serverPod, "mesh/no-client"))
	if policy, _ := s.Policy("mesh/no-client"); policy.Action != model.ActionDeny || policy.Unknown != "" {
		t.Errorf("the policy is %+v", policy)
	}
	p.apply(strict)
	p.await("STRICT", has(strictPolicy), names(serverPod, strictPolicy), names(serverPod, "mesh/no-client"))
	p.must(p.cluster.Delete(p.context(), security, "PeerAuthentication", "mesh", "default"))
	s = p.await("the end of STRICT", func(s *model.Snapshot) bool { return !names(serverPod, strictPolicy)(s) })
	if !names(serverPod, "mesh/no-client")(s) {
		t.Error("the other policy has gone, too")
	}
}

// names reports whether a workload names a policy.
func names(workload, policy string) func(*model.Snapshot) bool {
	return func(s *model.Snapshot) bool {
		w := s.Workload(workload)
		return w != nil && slices.Contains(w.Policies, policy)
	}
}

// While istiod is away everything that was known is; once it is back, what has
// come, and what has gone, is learned.
func (p *proxy) away(t *testing.T) {
	t.Helper()
	p.istiod.Kill()
	p.must(p.cluster.Delete(p.context(), security, "AuthorizationPolicy", "mesh", "no-client"))
	p.must(p.cluster.Delete(p.context(), "v1", "Service", "mesh", "gone"))
	p.deletePod("mesh", "gone")
	p.apply(late)
	if s := p.state.Snapshot(); !has(serverPod, gonePod, goneService, "mesh/no-client")(s) || known(s, lateService) {
		t.Error("without istiod, the mesh has changed")
	}
	p.istiod.Start()
	p.await("what has changed meanwhile", has(serverPod, serverService, lateService), hasNot(gonePod, goneService, "mesh/no-client"))
}
