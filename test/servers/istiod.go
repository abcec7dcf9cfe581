package servers

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/tacit-mesh/tacit/test/world"
)

// IstiodConfig says how istiod is to run.
type IstiodConfig struct {
	// Kubernetes is whose objects it reads. The namespace istio-system must be
	// there, and the kinds of policies.
	Kubernetes *Kubernetes
	// ProxyAccount is the service account, "NAMESPACE/NAME", whose pods may
	// ask for the certificates of others on their node.
	ProxyAccount string
}

// Istiod is Istio's control plane, as for ambient mode.
type Istiod struct {
	IstiodConfig
	*bench
	Address string // HOST:PORT for xDS and certificates, over TLS
	bin     string
	ports   []int
	program *world.Program // the newest
}

const (
	// IstiodName is the DNS name in its certificate.
	IstiodName = "istiod.istio-system.svc"
	// IstiodCluster is the cluster's id as it knows it.
	IstiodCluster = "Kubernetes"
)

// StartIstiod starts it; it ends with the test.
func StartIstiod(t testing.TB, config IstiodConfig) *Istiod {
	t.Helper()
	bin, err := Build(t.Context(), "istiod", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	i := &Istiod{IstiodConfig: config, bench: newBench(t, "istiod"), bin: bin, ports: freePorts(t, 6)}
	i.Address = fmt.Sprintf("127.0.0.1:%d", i.ports[5])
	i.write("mesh.yaml", "trustDomain: cluster.local\nrootNamespace: istio-system\n")
	i.write("networks.yaml", "networks: {}\n")
	i.Start()
	return i
}

// Start starts it, or starts it again, and waits until it is ready.
func (i *Istiod) Start() {
	i.t.Helper()
	args := []string{
		"--chdir=" + i.dir, // it writes below its working directory
		"PILOT_ENABLE_AMBIENT=true", "CA_TRUSTED_NODE_ACCOUNTS=" + i.ProxyAccount,
		"POD_NAME=istiod-0", "POD_NAMESPACE=istio-system", "CLUSTER_ID=" + IstiodCluster, "REVISION=default",
		"PILOT_CERT_PROVIDER=istiod", "JWT_POLICY=third-party-jwt", "PILOT_ENABLE_STATUS=false",
		"INJECTION_WEBHOOK_CONFIG_NAME=", "VALIDATION_WEBHOOK_CONFIG_NAME=",
		filepath.Join(i.bin, "istiod"), "discovery",
		"--kubeconfig=" + i.Kubernetes.Kubeconfig, "--meshConfig=" + i.path("mesh.yaml"), "--networksConfig=" + i.path("networks.yaml"),
		"--secureGRPCAddr=" + i.Address,
	}
	for n, flag := range []string{"--httpAddr=127.0.0.1:%d", "--httpsAddr=127.0.0.1:%d", "--grpcAddr=127.0.0.1:%d", "--monitoringAddr=127.0.0.1:%d", "--ctrlz_port=%d"} {
		args = append(args, fmt.Sprintf(flag, i.ports[n]))
	}
	i.program = i.launch("istiod", "env", args...)
	i.await(i.program, i.ready)
}

// Kill ends it with SIGKILL.
func (i *Istiod) Kill() {
	i.t.Helper()
	i.must(i.program.Kill())
}

func (i *Istiod) ready(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/ready", i.ports[0]), nil)
	if err != nil {
		return err
	}
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	why, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, why)
	}
	return err
}
