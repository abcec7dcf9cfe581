package servers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Kubernetes is an API server with its store, and nothing behind it: objects
// are what the test makes of them, pods run nowhere.
type Kubernetes struct {
	*bench
	Kubeconfig string // file, of an administrator
	Config     *rest.Config
}

// StartKubernetes starts both; they end with the test. services is the range of
// services' addresses.
func StartKubernetes(t testing.TB, services string) *Kubernetes {
	t.Helper()
	program, err := kubernetesProgram(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k := &Kubernetes{bench: newBench(t, "kubernetes")}
	ports, token := freePorts(t, 3), rand.Text()
	store, peers, port := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1]), ports[2]
	k.writeSigningKey()
	k.write("tokens", token+`,admin,admin,"system:masters"`+"\n")
	k.launch("etcd", program, "etcd", "--data-dir", k.path("etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", store, "--advertise-client-urls", store,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers)
	server := k.launch("kube-apiserver", program, "kube-apiserver",
		"--etcd-servers="+store, "--bind-address=127.0.0.1", "--advertise-address=192.0.2.1", fmt.Sprintf("--secure-port=%d", port),
		"--cert-dir="+k.path("served"), "--token-auth-file="+k.path("tokens"), "--authorization-mode=RBAC",
		"--service-cluster-ip-range="+services, "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+k.path("signing.key"), "--service-account-signing-key-file="+k.path("signing.key"),
		"--endpoint-reconciler-type=none", "--profiling=false")
	k.await(server, func(ctx context.Context) error { return k.connect(ctx, port, token) })
	return k
}

// kubernetesProgram is what make e2e runs, too.
func kubernetesProgram(ctx context.Context) (string, error) {
	top, err := top(ctx)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "make", "--silent", "--no-print-directory", "kubernetes")
	cmd.Dir, cmd.Stderr = top, os.Stderr
	said, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build Kubernetes: %w", err)
	}
	lines := strings.Fields(string(said))
	if len(lines) == 0 {
		return "", fmt.Errorf("build Kubernetes: make does not say where it is")
	}
	return filepath.Join(lines[len(lines)-1], "kubernetes"), nil
}

// PodToken is a service account's for an audience, as the kubelet gives it to a
// pod: bound to that, unless its name is empty.
func PodToken(ctx context.Context, client kubernetes.Interface, namespace, account, audience, pod string) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	if pod != "" {
		bound, err := client.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod, UID: bound.UID}
	}
	answer, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return answer.Status.Token, nil
}

// writeSigningKey makes the key of service accounts' tokens.
func (k *Kubernetes) writeSigningKey() {
	k.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	k.must(err)
	der, err := x509.MarshalECPrivateKey(key)
	k.must(err)
	k.write("signing.key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
}

// connect succeeds once the API server is ready.
func (k *Kubernetes) connect(ctx context.Context, port int, token string) error {
	roots, err := os.ReadFile(k.path("served/apiserver.crt"))
	if err != nil {
		return err
	}
	config := api.NewConfig()
	config.Clusters["test"] = &api.Cluster{Server: fmt.Sprintf("https://127.0.0.1:%d", port), CertificateAuthorityData: roots}
	config.AuthInfos["admin"] = &api.AuthInfo{Token: token}
	config.Contexts["test"] = &api.Context{Cluster: "test", AuthInfo: "admin"}
	config.CurrentContext = "test"
	k.Kubeconfig = k.path("kubeconfig")
	if err := clientcmd.WriteToFile(*config, k.Kubeconfig); err != nil {
		return err
	}
	if k.Config, err = clientcmd.BuildConfigFromFlags("", k.Kubeconfig); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(k.Config)
	if err != nil {
		return err
	}
	_, err = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err
}
