// Package waypoint tests connections by way of a waypoint, which is a real
// Envoy, between pods whose proxies run in the test's own process: their mesh
// is what the test says, as no control plane of ours knows waypoints.
package waypoint

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/proxy"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/redirect/zds/zdstest"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/servers/envoy"
	"github.com/tacit-mesh/tacit/test/world"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) {
	// Here, as there is no way to anywhere from inside.
	if _, err := envoy.Program(context.Background(), os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	world.Enter(m.Run)
}

// network is the one of all pods here, as istiod names it where there are
// several.
const network = "net1"

// mesh is a world in which each node has a proxy.
type mesh struct {
	*e2e.Mesh
	t     *testing.T
	ca    *identitytest.CA
	state *state.State
}

func start(t *testing.T) *mesh {
	t.Helper()
	return &mesh{Mesh: e2e.Build(t, world.Config{}), t: t, ca: identitytest.NewCA(t), state: state.New()}
}

// workload is a pod of the world as the mesh knows it.
func (m *mesh) workload(key string, edits ...func(*model.Workload)) *model.Workload {
	pod := m.Pod(key)
	namespace, name := filepath.Split(key)
	w := &model.Workload{
		UID: "cluster//Pod/" + key, Name: name, Namespace: filepath.Clean(namespace), ServiceAccount: pod.ServiceAccount(), TrustDomain: model.DefaultTrustDomain,
		Addresses: pod.Addresses, Network: network, Node: pod.Node.Name, Protocol: model.ProtocolHBONE, Capacity: 1,
	}
	for _, edit := range edits {
		edit(w)
	}
	return w
}

// Subscribe implements identity.Source.
func (m *mesh) Subscribe(ctx context.Context, s identity.Subject, update func(*identity.Material), _ func(error)) error {
	update(m.ca.Issue(m.t, s.Identity))
	<-ctx.Done()
	return ctx.Err()
}

// serve captures pods and runs a proxy for them until the end of the test.
func (m *mesh) serve(node string, keys ...string) *proxy.Proxy {
	m.t.Helper()
	var pods []sockets.LocalPod
	for _, key := range keys {
		w := m.workload(key)
		pods = append(pods, sockets.LocalPod{Enter: m.Pod(key).Do, Pod: sockets.Pod{
			UID: "uid-" + w.Name, Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, TrustDomain: w.TrustDomain, Addresses: w.Addresses,
		}})
		if err := zdstest.Capture(m.Pod(key)); err != nil {
			m.t.Fatal(err)
		}
	}
	store := identity.NewStore(m)
	p := proxy.New(proxy.Config{
		Node: node, Network: network, Sockets: sockets.NewLocal(pods), State: m.state, Identities: store,
		Recorder: telemetry.New(telemetry.Options{Log: zaptest.NewLogger(m.t)}), MaxConnsPerPod: 100, MaxQuestionsOutside: 100,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{store.Run, p.Run} {
		running.Go(func() {
			if err := run(ctx); !errors.Is(err, context.Canceled) {
				m.t.Errorf("the proxy of node %s: %v", node, err)
			}
		})
	}
	m.t.Cleanup(func() { cancel(); running.Wait() })
	select {
	case <-p.Ready():
	case <-time.After(e2e.Patience):
		m.t.Fatal("the proxy does not get ready")
	}
	return p
}

// write puts a file where programs of the world find it.
func (m *mesh) write(name string, content []byte) string {
	m.t.Helper()
	path := filepath.Join(m.Dir(), name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// writeIdentity puts a certificate where programs of the world find it, its key,
// and the root by which others are known.
func (m *mesh) writeIdentity(id model.Identity) (cert, key, root string) {
	m.t.Helper()
	own := m.ca.Issue(m.t, id)
	private, err := x509.MarshalPKCS8PrivateKey(own.Certificate.PrivateKey)
	m.must(err)
	name := id.Namespace + "-" + id.ServiceAccount
	return m.write(name+".crt", encoded("CERTIFICATE", own.Leaf.Raw)), m.write(name+".key", encoded("PRIVATE KEY", private)), m.write("root.crt", encoded("CERTIFICATE", m.ca.Root.Raw))
}

func encoded(what string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: what, Bytes: der})
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
