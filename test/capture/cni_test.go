package capture

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/tacit-mesh/tacit/internal/kube/kubetest"
	"github.com/tacit-mesh/tacit/redirect/cni"
	"github.com/tacit-mesh/tacit/redirect/cni/install"
	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/redirect/pods/cluster"
	"github.com/tacit-mesh/tacit/xds/model"
)

// pluginDir is where Debian's containernetworking-plugins are.
const pluginDir = "/usr/lib/cni"

// apiAddr is the node's own address of an API server, for the plugin.
var apiAddr = netip.MustParseAddrPort("127.0.0.1:6443")

// kubeNode is a node of a cluster whose API is a fake, with the network that
// real CNI plugins make.
type kubeNode struct {
	*node
	ns      testNS
	client  *fake.Clientset
	conf    string
	config  *rest.Config
	libcni  *libcni.CNIConfig
	install *install.Installer
	source  *cluster.Source
	// stopInstall ends the installer; what it has put in place stays.
	stopInstall func()
}

const bridgeConfig = `{
  "cniVersion": "1.0.0",
  "name": "test",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "ipam": {"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "198.18.88.0/24"}], [{"subnet": "fd00:7ac1:88::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
    }
  ]
}
`

func newKubeNode(t *testing.T, objects ...runtime.Object) *kubeNode {
	t.Helper()
	if _, err := os.Stat(filepath.Join(pluginDir, "bridge")); err != nil {
		t.Skipf("needs the package containernetworking-plugins: %v", err)
	}
	dir := t.TempDir()
	n := &kubeNode{ns: newNS(t, filepath.Join(dir, "node")), client: kubetest.ShowDeletions(fake.NewClientset(objects...)), conf: filepath.Join(dir, "net.d")}
	n.node = newNode(t, n.ns)
	bin := filepath.Join(dir, "bin")
	for _, d := range []string{n.conf, bin} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(n.conf, "10-test.conflist"), []byte(strings.Replace(bridgeConfig, "DATA", filepath.Join(dir, "ipam"), 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	built := filepath.Join(dir, cni.Type)
	if out, err := exec.Command("go", "build", "-o", built, "../../cmd/tacit-cni").CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v: %s", err, out)
	}
	n.libcni = libcni.NewCNIConfigWithCacheDir([]string{bin, pluginDir}, filepath.Join(dir, "cache"), nil)
	n.config = n.serveAPI(t)
	n.install = install.New(install.Config{
		Binary: built, BinDir: bin, ConfDir: n.conf, Log: n.log.Named("install"),
		Entry:      cni.Config{Type: cni.Type, Socket: n.socket(), SkipNamespaces: []string{"kube-system"}, TimeoutSeconds: 3},
		Kubeconfig: func() ([]byte, error) { return cluster.Kubeconfig(n.config, apiToken) },
	})
	n.stopInstall = background(t, n.install.Run)
	eventually(t, 10*time.Second, "the plugin installed", n.install.Installed)
	return n
}

// socket is where the plugin finds the agent.
func (n *kubeNode) socket() string { return filepath.Join(filepath.Dir(n.conf), "cni/cni.sock") }

// apiToken is that of the plugin.
const apiToken = "token-of-the-plugin"

// serveAPI answers inside the node what the fake holds, to who has the token.
func (n *kubeNode) serveAPI(t *testing.T) *rest.Config {
	t.Helper()
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, r *http.Request, o any, err error) {
		if err != nil || r.Header.Get("Authorization") != "Bearer "+apiToken {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		json.NewEncoder(w).Encode(o)
	}
	mux.HandleFunc("GET /api/v1/namespaces/{ns}", func(w http.ResponseWriter, r *http.Request) {
		o, err := n.client.CoreV1().Namespaces().Get(r.Context(), r.PathValue("ns"), metav1.GetOptions{})
		answer(w, r, o, err)
	})
	mux.HandleFunc("GET /api/v1/namespaces/{ns}/pods/{pod}", func(w http.ResponseWriter, r *http.Request) {
		o, err := n.client.CoreV1().Pods(r.PathValue("ns")).Get(r.Context(), r.PathValue("pod"), metav1.GetOptions{})
		answer(w, r, o, err)
	})
	server := httptest.NewUnstartedServer(mux)
	server.Listener.Close()
	server.Listener = n.ns.listen(t, apiAddr.String())
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return &rest.Config{Host: "https://" + apiAddr.String(), TLSClientConfig: rest.TLSClientConfig{CAData: ca}}
}

// startKube starts the agent as tacit-agent --kubernetes would; stop ends it.
func (n *kubeNode) startKube() (stop func()) {
	n.t.Helper()
	source, err := cluster.NewSource(cluster.Config{
		Client: kubetest.NodeAPI{Clientset: n.client}, Reader: pods.Reader{Node: "node", TrustDomain: "cluster.local", Skips: model.SkipSettings{Mode: model.SkipsAny}},
		Enrolled: func(namespaces []string) {
			if err := n.install.KeepEnrolled(namespaces); err != nil {
				n.t.Error(err)
			}
		},
		Log: n.log.Named("source"),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.source = source
	locator := pods.NewLocator("/proc", n.dir)
	n.server = handoff.New(handoff.Config{Socket: filepath.Join(n.dir, "agent.sock"), ProxyUID: n.proxyUID, Log: n.log.Named("agent")})
	n.set = pods.New(pods.Config{
		Sockets: n.server, Backend: pods.BackendAuto, Check: 100 * time.Millisecond, Log: n.log.Named("agent"), Node: n.ns.path,
		Locate: locator.Locate, Announce: source.Announce, Report: source.Report,
	})
	enroller := &cluster.Enroller{Source: source, Set: n.set, Locator: locator, Log: n.log.Named("cni")}
	server := &cni.Server{Socket: n.socket(), Agent: enroller, Log: n.log.Named("cni")}
	return background(n.t, n.server.Run, n.set.Run, server.Run, func(ctx context.Context) error { return source.Run(ctx, n.set.Update) })
}

// kubePod is a pod as the kubelet finds it: scheduled, without a network.
func kubePod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("00000000-0000-4000-8000-0000000" + name)},
		Spec:       corev1.PodSpec{NodeName: "node"}, Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
}

func labelled(name, value string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"tacit.mesh/dataplane": value}}}
}

// runtime is what a container runtime does with the first configuration.
type runtimeCall struct {
	list *libcni.NetworkConfigList
	conf *libcni.RuntimeConf
	pod  testNS
}

func (n *kubeNode) prepare(namespace, name string) *runtimeCall {
	n.t.Helper()
	files, err := libcni.ConfFiles(n.conf, []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) == 0 {
		n.t.Fatalf("configurations: %v, %v", files, err)
	}
	list, err := libcni.ConfListFromFile(files[0])
	if err != nil {
		n.t.Fatal(err)
	}
	pod := newNS(n.t, filepath.Join(n.t.TempDir(), name))
	uid := string(kubePod(namespace, name).UID)
	return &runtimeCall{list: list, pod: pod, conf: &libcni.RuntimeConf{
		ContainerID: "c-" + name, NetNS: pod.path, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", namespace}, {"K8S_POD_NAME", name}, {"K8S_POD_UID", uid}},
	}}
}

// add makes the pod's network and says how long that took.
func (n *kubeNode) add(c *runtimeCall) (ips []netip.Addr, took time.Duration, err error) {
	started := time.Now()
	err = n.ns.Do(func() error {
		result, err := n.libcni.AddNetworkList(context.Background(), c.list, c.conf)
		if err != nil {
			return err
		}
		full, err := current.NewResultFromResult(result)
		if err != nil {
			return err
		}
		for _, ip := range full.IPs {
			a, _ := netip.AddrFromSlice(ip.Address.IP)
			ips = append(ips, a.Unmap())
		}
		return nil
	})
	return ips, time.Since(started), err
}

func (n *kubeNode) create(namespace, name string) {
	n.t.Helper()
	if _, err := n.client.CoreV1().Pods(namespace).Create(n.t.Context(), kubePod(namespace, name), metav1.CreateOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

func (c *runtimeCall) rules(t *testing.T) string {
	t.Helper()
	return c.pod.run(t, "sh", "-c", "iptables-nft-save; iptables-legacy-save")
}

// An enrolled pod is captured when the plugins are done, which is before its
// first container starts; another one is left alone; and when its network
// ends nothing of it stays with the agent.
func TestCNI(t *testing.T) {
	n := newKubeNode(t, labelled("shop", "enabled"), labelled("plain", "disabled"))
	n.create("shop", "00001")
	n.create("plain", "00002")
	n.startKube()
	n.startProxy()
	<-n.relay.synced

	web := n.prepare("shop", "00001")
	ips, _, err := n.add(web)
	if err != nil || len(ips) != 2 {
		t.Fatalf("addresses %v, %v", ips, err)
	}
	l := n.ns.listen(t, ":80")
	echo(t, l)
	for _, to := range []string{"198.18.88.1:80", "[fd00:7ac1:88::1]:80"} {
		seen := n.relay.out.Load()
		c := web.pod.dial(t, netip.MustParseAddrPort(to))
		if _, err := say(c, "hello"); err != nil || n.relay.out.Load() != seen+1 {
			t.Errorf("the first connection of the pod to %s: %v; the proxy has seen %d", to, err, n.relay.out.Load()-seen)
		}
	}
	eventually(t, 10*time.Second, "announced", func() bool {
		p, err := n.client.CoreV1().Pods("shop").Get(t.Context(), "00001", metav1.GetOptions{})
		return err == nil && p.Annotations[cluster.Redirection] == cluster.Redirected
	})
	if err := n.ns.Do(func() error { return n.libcni.CheckNetworkList(context.Background(), web.list, web.conf) }); err != nil {
		t.Errorf("CHECK of a captured pod: %v", err)
	}

	other := n.prepare("plain", "00002")
	if _, _, err := n.add(other); err != nil {
		t.Fatal(err)
	}
	if rules := other.rules(t); strings.Contains(rules, "TACIT_") {
		t.Errorf("a pod that is not enrolled has rules:\n%s", rules)
	}

	if err := n.ns.Do(func() error { return n.libcni.DelNetworkList(context.Background(), web.list, web.conf) }); err != nil {
		t.Errorf("DEL: %v", err)
	}
	if err := n.client.CoreV1().Pods("shop").Delete(t.Context(), "00001", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(web.pod.path, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "forgotten", func() bool { return len(n.set.Status()) == 0 })
}

// Without the agent, pods that are not enrolled start at once, by what the API
// says or, without it, the list; the enrolled wait, and say for whom.
func TestCNIWithoutAgent(t *testing.T) {
	n := newKubeNode(t, labelled("shop", "enabled"), labelled("plain", "disabled"), kubePod("kube-system", "00009"))
	for namespace, name := range map[string]string{"shop": "00001", "plain": "00002"} {
		n.create(namespace, name)
	}
	n.create("shop", "00003")
	stop := n.startKube()
	eventually(t, 10*time.Second, "pods known", func() bool { return n.set.Synced() })
	stop()
	const atOnce = 2 * time.Second

	for _, api := range []string{"with the API", "without the API"} {
		t.Run(api, func(t *testing.T) {
			n.t = t
			if strings.HasPrefix(api, "without") {
				n.stopInstall()
				if err := os.Remove(cni.Kubeconfig(filepath.Join(filepath.Dir(n.conf), "bin"))); err != nil {
					t.Fatal(err)
				}
			}
			del := func(c *runtimeCall) {
				if err := n.ns.Do(func() error { return n.libcni.DelNetworkList(context.Background(), c.list, c.conf) }); err != nil {
					t.Errorf("DEL without the agent: %v", err)
				}
			}
			for _, pod := range [][2]string{{"kube-system", "00009"}, {"plain", "00002"}} {
				call := n.prepare(pod[0], pod[1])
				if _, took, err := n.add(call); err != nil || took > atOnce {
					t.Errorf("pod of %s: %v after %v", pod[0], err, took)
				}
				del(call)
			}
			call := n.prepare("shop", "00001")
			_, took, err := n.add(call)
			del(call)
			if err == nil || !strings.Contains(err.Error(), "pod shop/00001 is enrolled in the mesh (label tacit.mesh/dataplane), and tacit-agent did not answer on ") || took < 3*time.Second {
				t.Errorf("an enrolled pod: %v after %v", err, took)
			}
		})
	}
	n.t = t
	done := make(chan error, 1)
	call := n.prepare("shop", "00003")
	go func() {
		_, _, err := n.add(call)
		done <- err
	}()
	n.startKube()
	if err := <-done; err != nil {
		t.Errorf("an enrolled pod, when the agent has come: %v", err)
	}
	if !strings.Contains(call.rules(t), "TACIT_") {
		t.Error("it is not captured")
	}
}

// A pod that cannot be captured does not start, and says why.
func TestCNICaptureFails(t *testing.T) {
	n := newKubeNode(t, labelled("shop", "enabled"))
	n.create("shop", "00001")
	n.startKube()
	call := n.prepare("shop", "00001")
	call.pod.listen(t, ":15006")
	if _, _, err := n.add(call); err == nil || !strings.Contains(err.Error(), "enrolled in the mesh and not captured") || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
	eventually(t, 10*time.Second, "an event", func() bool {
		list, err := n.client.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
		return err == nil && len(list.Items) == 1 && list.Items[0].Reason == string(pods.ReasonFailed)
	})
	// So it is to a runtime that looks later.
	out, err := n.plugin("CHECK", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"n","type":"tacit-cni","socket":%q}`, n.socket()),
		"CNI_NETNS="+call.pod.path, "CNI_ARGS=K8S_POD_NAMESPACE=shop;K8S_POD_NAME=00001;K8S_POD_UID="+string(kubePod("shop", "00001").UID))
	if err == nil || !strings.Contains(out, "pod shop/00001 is enrolled in the mesh and not captured") || !strings.Contains(out, "the pod is pending") {
		t.Errorf("CHECK says %s (%v)", out, err)
	}
}

// plugin runs a command of the plugin that is installed.
func (n *kubeNode) plugin(command, stdin string, env ...string) (string, error) {
	cmd := exec.Command(filepath.Join(filepath.Dir(n.conf), "bin", cni.Type))
	cmd.Env = append([]string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=c", "CNI_IFNAME=eth0", "CNI_PATH=/"}, env...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	return string(out), err
}

// Configurations that the plugin cannot work with, and commands of CNI 1.1
// that the other plugins here do not know yet.
func TestCNICommands(t *testing.T) {
	n := newKubeNode(t)
	for _, tt := range []struct {
		command, stdin, want string
		fails                bool
	}{
		{"STATUS", `{"cniVersion":"1.1.0","name":"n","type":"tacit-cni","socket":"/nowhere"}`, "", false},
		{"GC", `{"cniVersion":"1.1.0","name":"n","type":"tacit-cni","socket":"/nowhere"}`, "", false},
		{"STATUS", `{"cniVersion":"1.1.0","name":"n","type":"tacit-cni"}`, "names no socket", true},
		{"ADD", `{"cniVersion":"1.0.0","name":"n","type":"tacit-cni","socket":"/nowhere"}`, "must come after the plugin", true},
		{"DEL", `{"cniVersion":"1.0.0","name":"n","type":"tacit-cni"}`, "", false},
		{"ADD", `{"cniVersion":"1.0.0","name":"n","type":"tacit-cni","socket":"/nowhere","prevResult":{"cniVersion":"1.0.0","dns":{"search":["x"]}}}`, `"search"`, false},
	} {
		out, err := n.plugin(tt.command, tt.stdin, "CNI_NETNS="+n.ns.path)
		if (err != nil) != tt.fails || !strings.Contains(out, tt.want) {
			t.Errorf("%s %s: %s (%v), want %q", tt.command, tt.stdin, out, err, tt.want)
		}
	}
}

// Who connects must be root; the directory keeps everybody else away.
func TestCNISocketIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cni")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	server := &cni.Server{Socket: filepath.Join(dir, "cni.sock"), Agent: &cluster.Enroller{}, Log: newNode(t, testNS{}).log}
	if err := server.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "must have mode 0700") {
		t.Errorf("in an open directory: %v", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	background(t, server.Run)
	eventually(t, 10*time.Second, "the socket", func() bool {
		c, err := net.Dial("unix", server.Socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}
