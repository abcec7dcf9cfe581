package servers

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/world"
)

// SPIREConfig says how SPIRE is to run.
type SPIREConfig struct {
	TrustDomain string
	Life        time.Duration // of certificates
	// UID is the user whose processes are the delegate; its programs may
	// reach the admin socket.
	UID int
	// Kubernetes is whose pods the agent is one of: its node proves itself by
	// that pod's token (k8s_psat), else by one that it joins with.
	Kubernetes *Kubernetes
}

// SPIRE is a running server, and an agent of it on this machine.
type SPIRE struct {
	SPIREConfig
	*bench
	bin    string
	port   int
	bundle int // port of the server's bundle endpoint
	server *world.Program
	agent  *world.Program
}

// nodeID is the parent of all entries: whichever agent has joined.
const nodeID = "/node"

// StartSPIRE starts both; they end with the test. A process of the delegate's
// user may ask for any pod's certificate once Delegate has been called.
func StartSPIRE(t testing.TB, config SPIREConfig) *SPIRE {
	t.Helper()
	bin, err := Build(t.Context(), "spire", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	s := &SPIRE{SPIREConfig: config, bench: newBench(t, "spire"), bin: bin}
	ports := freePorts(t, 2)
	s.port, s.bundle = ports[0], ports[1]
	for _, sub := range []string{"server", "agent", "public", "admin"} {
		s.must(os.MkdirAll(s.path(sub), 0o755))
	}
	s.must(os.Chown(s.dir, s.UID, -1)) // root reaches everything anyway
	s.write("server.conf", s.serverConfig())
	s.write("agent.conf", s.agentConfig())
	s.server = s.launch("spire-server", s.program("spire-server"), "run", "-config", s.path("server.conf"))
	s.awaitHealth(s.server, "healthcheck", "-socketPath", s.path("server.sock"))
	if s.Kubernetes != nil {
		s.run("entry", "create", "-socketPath", s.path("server.sock"), "-node", "-spiffeID", s.id(nodeID),
			"-selector", "k8s_psat:cluster:"+cluster, "-selector", "k8s_psat:agent_node_name:"+agentNode)
		s.createAgentPod()
	}
	s.StartAgent()
	return s
}

func (s *SPIRE) serverConfig() string {
	return fmt.Sprintf(`
server {
	bind_address = "127.0.0.1"
	bind_port = "%d"
	socket_path = %q
	trust_domain = %q
	data_dir = %q
	log_level = "INFO"
	ca_ttl = "24h"
	agent_ttl = "1h"
	default_x509_svid_ttl = "%v"
	federation { bundle_endpoint { address = "127.0.0.1", port = %d } }
}
plugins {
	DataStore "sql" { plugin_data { database_type = "sqlite3", connection_string = %q } }
	%s
	KeyManager "memory" { plugin_data {} }
}
`, s.port, s.path("server.sock"), s.TrustDomain, s.path("server"), s.Life, s.bundle, s.path("server/datastore.sqlite3"), s.judgesNodes())
}

func (s *SPIRE) agentConfig() string {
	return fmt.Sprintf(`
agent {
	server_address = "127.0.0.1"
	server_port = "%d"
	socket_path = %q
	admin_socket_path = %q
	trust_domain = %q
	data_dir = %q
	log_level = "INFO"
	insecure_bootstrap = true
	authorized_delegates = [%q]
	experimental { sync_interval = "1s" }
}
plugins {
	%s
	KeyManager "memory" { plugin_data {} }
	WorkloadAttestor "unix" { plugin_data {} }
}
`, s.port, s.WorkloadSocket(), s.AdminSocket(), s.TrustDomain, s.path("agent"), s.id("/proxy"), s.provesNode())
}

// AdminSocket is where the agent serves its delegates.
func (s *SPIRE) AdminSocket() string { return s.path("admin/agent.sock") }

// WorkloadSocket is where the agent serves the Workload API.
func (s *SPIRE) WorkloadSocket() string { return s.path("public/agent.sock") }

// StartAgent starts an agent, which joins as the node.
func (s *SPIRE) StartAgent() {
	s.t.Helper()
	args := []string{"run", "-config", s.path("agent.conf")}
	if s.Kubernetes == nil {
		said := s.run("token", "generate", "-socketPath", s.path("server.sock"), "-spiffeID", s.id(nodeID))
		args = append(args, "-joinToken", strings.TrimSpace(strings.TrimPrefix(said, "Token:")))
	}
	s.agent = s.launch("spire-agent", s.program("spire-agent"), args...)
	s.awaitHealth(s.agent, "healthcheck", "-socketPath", s.WorkloadSocket())
	s.must(os.Chown(s.path("admin"), s.UID, -1))
	s.must(os.Chown(s.AdminSocket(), s.UID, -1))
}

// Agent is the running agent, or the last one.
func (s *SPIRE) Agent() *world.Program { return s.agent }

// KillAgent ends the agent with SIGKILL.
func (s *SPIRE) KillAgent() {
	s.t.Helper()
	s.must(s.agent.Kill())
}

// Delegate makes processes of the delegate's user the agent's delegate.
func (s *SPIRE) Delegate() {
	s.t.Helper()
	s.Entry("/proxy", []string{fmt.Sprintf("unix:uid:%d", s.UID)})
}

// Entry registers a workload by the path of its id, and returns the entry's
// own id.
func (s *SPIRE) Entry(path string, selectors []string, more ...string) string {
	s.t.Helper()
	args := []string{"entry", "create", "-socketPath", s.path("server.sock"), "-parentID", s.id(nodeID), "-spiffeID", s.id(path)}
	for _, selector := range selectors {
		args = append(args, "-selector", selector)
	}
	said := s.run(append(args, more...)...)
	found := regexp.MustCompile(`Entry ID\s*: (\S+)`).FindStringSubmatch(said)
	if found == nil {
		s.t.Fatalf("no id of an entry in %q", said)
	}
	return found[1]
}

// Delete takes an entry away.
func (s *SPIRE) Delete(entry string) {
	s.t.Helper()
	s.run("entry", "delete", "-socketPath", s.path("server.sock"), "-entryID", entry)
}

// Federate makes another trust domain's roots known.
func (s *SPIRE) Federate(domain string, root *x509.Certificate) {
	s.t.Helper()
	s.write("bundle.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})))
	s.run("bundle", "set", "-socketPath", s.path("server.sock"), "-id", "spiffe://"+domain, "-path", s.path("bundle.pem"))
}

// Bundle is the roots of the trust domain, PEM.
func (s *SPIRE) Bundle() string {
	s.t.Helper()
	return s.run("bundle", "show", "-socketPath", s.path("server.sock"))
}

// FederateWith has the server fetch the bundle of another one, now and as it
// changes.
func (s *SPIRE) FederateWith(other *SPIRE) {
	s.t.Helper()
	s.write("bundle.pem", other.Bundle())
	s.run("federation", "create", "-socketPath", s.path("server.sock"), "-trustDomain", other.TrustDomain,
		"-bundleEndpointURL", fmt.Sprintf("https://127.0.0.1:%d", other.bundle), "-bundleEndpointProfile", "https_spiffe",
		"-endpointSpiffeID", other.id("/spire/server"), "-trustDomainBundlePath", s.path("bundle.pem"), "-trustDomainBundleFormat", "pem")
}

func (s *SPIRE) id(path string) string      { return "spiffe://" + s.TrustDomain + path }
func (s *SPIRE) program(name string) string { return filepath.Join(s.bin, name) }

// run runs a command of the server to its end.
func (s *SPIRE) run(args ...string) string {
	s.t.Helper()
	said, err := exec.CommandContext(s.t.Context(), s.program("spire-server"), args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("spire-server %s %s: %v: %s", args[0], args[1], err, said)
	}
	return string(said)
}

// awaitHealth waits until the program's own command finds it healthy.
func (s *SPIRE) awaitHealth(p *world.Program, args ...string) {
	s.t.Helper()
	s.await(p, func(ctx context.Context) error {
		said, err := exec.CommandContext(ctx, s.program(p.Name), args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, said)
		}
		return nil
	})
}
