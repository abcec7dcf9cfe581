package deploy

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tacit-mesh/tacit/deploy/images"
)

// podsOf are the pod templates by the name of their workload.
func podsOf(objects []runtime.Object) map[string]core.PodTemplateSpec {
	all := map[string]core.PodTemplateSpec{}
	for _, o := range objects {
		switch w := o.(type) {
		case *apps.Deployment:
			all[w.Name] = w.Spec.Template
		case *apps.DaemonSet:
			all[w.Name] = w.Spec.Template
		}
	}
	return all
}

// No pod is privileged, none can gain anything, and none can change its own
// files, whatever the values.
func TestPodsAreConfined(t *testing.T) {
	for name, v := range variants(t) {
		pods := podsOf(decode(t, render(t, v)))
		if len(pods) != 3 {
			t.Errorf("%s: %d workloads, want 3", name, len(pods))
		}
		for workload, pod := range pods {
			if len(pod.Spec.Containers) != 1 || len(pod.Spec.InitContainers) != 0 {
				t.Errorf("%s: %s has further containers", name, workload)
			}
			s := pod.Spec.Containers[0].SecurityContext
			switch {
			case s == nil || s.Privileged == nil || *s.Privileged:
				t.Errorf("%s: %s is privileged", name, workload)
			case s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation:
				t.Errorf("%s: %s may gain privileges", name, workload)
			case s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem:
				t.Errorf("%s: %s may change its files", name, workload)
			case s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}):
				t.Errorf("%s: %s keeps capabilities", name, workload)
			case s.SeccompProfile == nil || s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault:
				t.Errorf("%s: %s has every system call", name, workload)
			}
			if workload == "tacit-agent" {
				continue
			}
			if len(s.Capabilities.Add) != 0 || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.AppArmorProfile != nil {
				t.Errorf("%s: %s has more than it needs: %+v", name, workload, s)
			}
			if pod.Spec.HostNetwork || pod.Spec.HostPID || pod.Spec.HostIPC {
				t.Errorf("%s: %s is in namespaces of the node", name, workload)
			}
		}
	}
}

// What tacit-agent has of its node is just this.
func TestAgentPrivileges(t *testing.T) {
	pod := podsOf(decode(t, render(t, nil)))["tacit-agent"].Spec
	container := pod.Containers[0]
	want := []core.Capability{"CHOWN", "DAC_OVERRIDE", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"}
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(container.SecurityContext.Capabilities.Add))); diff != "" {
		t.Errorf("capabilities (- wanted, + in the chart):\n%s", diff)
	}
	if !pod.HostNetwork || !pod.HostPID || pod.HostIPC {
		t.Error("it needs the node's network and process ids, and no more")
	}
	if diff := cmp.Diff(map[string]string{
		"/run/tacit": "rw /run/tacit", "/run/netns": "ro /run/netns", "/run/xtables.lock": "rw /run/xtables.lock",
		"/host/cni/bin": "rw /opt/cni/bin", "/host/cni/net.d": "rw /etc/cni/net.d",
	}, hostPaths(pod)); diff != "" {
		t.Errorf("mounts of the node (- wanted, + in the chart):\n%s", diff)
	}
}

// The proxy has one directory of the node, for one socket, and no token that
// the API server would take.
func TestProxyPrivileges(t *testing.T) {
	pod := podsOf(decode(t, render(t, nil)))["tacit-proxy"].Spec
	if diff := cmp.Diff(map[string]string{"/run/tacit/agent": "ro /run/tacit/agent"}, hostPaths(pod)); diff != "" {
		t.Errorf("mounts of the node (- wanted, + in the chart):\n%s", diff)
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("it has a token for the API server")
	}
	for _, volume := range pod.Volumes {
		if volume.Projected == nil {
			continue
		}
		for _, source := range volume.Projected.Sources {
			if token := source.ServiceAccountToken; token != nil && token.Audience != "tacitd" {
				t.Errorf("a token for %q", token.Audience)
			}
		}
	}
	user := pod.SecurityContext.RunAsUser
	if user == nil || *user != images.ProxyUID {
		t.Errorf("it runs as user %v, want %d, by which the agent knows it", user, images.ProxyUID)
	}
}

// What is chosen beside the defaults reaches the programs.
func TestSettingsReachPrograms(t *testing.T) {
	objects := decode(t, render(t, everything()))
	config := find[*core.ConfigMap](t, objects, "tacit-mesh")
	if config.Data["mesh.yaml"] != "pathNormalization:\n  normalization: BASE\n" {
		t.Errorf("the mesh's configuration is %q", config.Data)
	}
	pods := podsOf(objects)
	for workload, want := range map[string][]string{
		"tacitd": {"--mesh-config=/etc/tacit/mesh.yaml", "--no-status", "--skips=listed", "--skip-ports=5432,9000-9100", "--trust-domain=example.org", "--more"},
		"tacit-proxy": {"--crl=/etc/tacit/crl/ca-crl.pem", "--crl=/etc/tacit/crl/more.crl", "--crl=/etc/tacit/crl-0/ours.pem", "--crl=/etc/tacit/crl-1/theirs.der",
			"--spire=/run/spire/api.sock", "--drain=60s", "--direct-local=false", "--connections-per-pod=7", "--more"},
		"tacit-agent": {"--iptables=nft", "--remove-taint", "--skips=listed", "--skip-ports=5432,9000-9100", "--trust-domain=example.org", "--more"},
	} {
		args := pods[workload].Spec.Containers[0].Args
		for _, arg := range want {
			if !slices.Contains(args, arg) {
				t.Errorf("%s has no %s: %v", workload, arg, args)
			}
		}
	}
	if diff := cmp.Diff(map[string]string{
		"/run/tacit/agent": "ro /run/tacit/agent", "/run/spire": "ro /run/spire/admin",
		"/etc/tacit/crl-0": "ro /etc/pki/crl", "/etc/tacit/crl-1": "ro /var/lib/pki/crl",
	}, hostPaths(pods["tacit-proxy"].Spec)); diff != "" {
		t.Errorf("mounts of the node (- wanted, + in the chart):\n%s", diff)
	}
	lists := projected(t, pods["tacit-proxy"].Spec, "/etc/tacit/crl")
	if lists == nil || lists.Name != "istio-ca-crl" || lists.Optional != nil || len(lists.Items) != 2 || lists.Items[1] != (core.KeyToPath{Key: "more.crl", Path: "more.crl"}) {
		t.Errorf("the lists of revoked certificates come from %+v", lists)
	}
	if slices.ContainsFunc(pods["tacit-proxy"].Spec.Containers[0].Args, func(a string) bool { return strings.HasPrefix(a, "--ca=") }) {
		t.Error("the proxy has two sources of certificates")
	}
	plain := podsOf(decode(t, render(t, nil)))["tacitd"].Spec
	if len(plain.Volumes) != 0 {
		t.Errorf("without a configuration there is a volume: %v", plain.Volumes)
	}
}

// projected is the ConfigMap behind a mount that is projected.
func projected(t *testing.T, pod core.PodSpec, mount string) *core.ConfigMapProjection {
	t.Helper()
	for _, m := range pod.Containers[0].VolumeMounts {
		for _, v := range pod.Volumes {
			if m.MountPath == mount && v.Name == m.Name && v.Projected != nil && len(v.Projected.Sources) == 1 {
				return v.Projected.Sources[0].ConfigMap
			}
		}
	}
	return nil
}

// Every argument that the chart can give is a flag of the program.
func TestArgumentsAreFlags(t *testing.T) {
	checkArguments(t, podsOf(decode(t, render(t, everything()))))
}

func checkArguments(t *testing.T, pods map[string]core.PodTemplateSpec) {
	t.Helper()
	for workload, pod := range pods {
		cmd := exec.Command("go", "run", "../cmd/"+workload, "--help")
		help, err := cmd.Output()
		if err != nil {
			t.Errorf("%s --help: %v", workload, err)
			continue
		}
		for _, arg := range pod.Spec.Containers[0].Args {
			flag, _, _ := strings.Cut(arg, "=")
			if flag != "--more" && !strings.Contains(string(help), " "+flag+" ") {
				t.Errorf("%s has no flag %s", workload, flag)
			}
		}
	}
}

// hostPaths are the mounts of the node's files: mode and path by the place in
// the container.
func hostPaths(pod core.PodSpec) map[string]string {
	out := map[string]string{}
	for _, mount := range pod.Containers[0].VolumeMounts {
		for _, volume := range pod.Volumes {
			if volume.Name != mount.Name || volume.HostPath == nil {
				continue
			}
			mode := "rw"
			if mount.ReadOnly {
				mode = "ro"
			}
			out[mount.MountPath] = mode + " " + volume.HostPath.Path
		}
	}
	return out
}

// Rolling anything leaves no node without what it needs, where that can be.
func TestRolls(t *testing.T) {
	objects := decode(t, render(t, nil))
	proxy := find[*apps.DaemonSet](t, objects, "tacit-proxy")
	if r := proxy.Spec.UpdateStrategy.RollingUpdate; r.MaxSurge.String() != "1" || r.MaxUnavailable.String() != "0" {
		t.Errorf("proxies are rolled by %+v", r)
	}
	if grace := *proxy.Spec.Template.Spec.TerminationGracePeriodSeconds; grace != 3630 {
		t.Errorf("a proxy is killed after %d s, want after its drain of 3600 s", grace)
	}
	if !slices.Contains(proxy.Spec.Template.Spec.Containers[0].Args, "--drain=3600s") {
		t.Error("the proxy does not drain as long as it may")
	}
	for _, port := range proxy.Spec.Template.Spec.Containers[0].Ports {
		if port.HostPort != 0 {
			t.Errorf("port %d of the node: two proxies could not run side by side", port.HostPort)
		}
	}
	agent := find[*apps.DaemonSet](t, objects, "tacit-agent")
	if r := agent.Spec.UpdateStrategy.RollingUpdate; r.MaxSurge.String() != "0" || r.MaxUnavailable.String() != "1" {
		t.Errorf("agents are rolled by %+v", r)
	}
	control := find[*apps.Deployment](t, objects, "tacitd")
	if r := control.Spec.Strategy.RollingUpdate; r.MaxUnavailable.String() != "0" || *control.Spec.Replicas != 2 {
		t.Errorf("%d of tacitd are rolled by %+v", *control.Spec.Replicas, r)
	}
	if b := find[*policy.PodDisruptionBudget](t, objects, "tacitd"); b.Spec.MinAvailable.String() != "1" {
		t.Errorf("a drain of nodes leaves %v of tacitd", b.Spec.MinAvailable)
	}
	for _, ds := range []*apps.DaemonSet{proxy, agent} {
		if want := []core.Toleration{{Operator: core.TolerationOpExists}}; cmp.Diff(want, ds.Spec.Template.Spec.Tolerations) != "" {
			t.Errorf("%s is not on every node: %v", ds.Name, ds.Spec.Template.Spec.Tolerations)
		}
		if ds.Spec.Template.Spec.PriorityClassName != "system-node-critical" {
			t.Errorf("%s can be evicted", ds.Name)
		}
	}
}

// Images are those that are built, and no pod of ours is in the mesh itself.
func TestImages(t *testing.T) {
	pods := podsOf(decode(t, render(t, values{"image": values{"registry": "registry.example.com/mesh", "tag": "v9"}})))
	for _, image := range images.All() {
		pod, ok := pods[image.Name]
		if !ok {
			continue // the command line's
		}
		if got, want := pod.Spec.Containers[0].Image, "registry.example.com/mesh/"+image.Name+":v9"; got != want {
			t.Errorf("%s: image %s, want %s", image.Name, got, want)
		}
		if pod.Labels["tacit.mesh/dataplane"] != "disabled" {
			t.Errorf("%s may be enrolled: %v", image.Name, pod.Labels)
		}
		user := pod.Spec.SecurityContext
		if image.Name == "tacitd" && !strings.HasPrefix(image.User, "13372:") || image.Name == "tacitd" && *user.RunAsUser != 13372 {
			t.Errorf("tacitd runs as %v, its image is made for %s", user, image.User)
		}
		delete(pods, image.Name)
	}
	for name := range pods {
		t.Errorf("no image of the name %s is built", name)
	}
}
