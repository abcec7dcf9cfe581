package deploy

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	core "k8s.io/api/core/v1"
)

// inPlaceOfZtunnel are the pods of deploy/istio, by their programs.
func inPlaceOfZtunnel(t *testing.T) map[string]core.PodTemplateSpec {
	t.Helper()
	text, err := os.ReadFile("istio/tacit.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pods := map[string]core.PodTemplateSpec{}
	for name, pod := range podsOf(decode(t, string(text))) {
		program, ok := strings.CutPrefix(name, "ztunnel-")
		if !ok {
			t.Errorf("Istio's dashboard of ztunnel does not show pods of %s", name)
		}
		pods[program] = pod
	}
	if len(pods) != 2 {
		t.Fatalf("%d workloads, want agent and proxy", len(pods))
	}
	return pods
}

// In ztunnel's place the agent has less than elsewhere, and the proxy nothing.
func TestUnderIstio(t *testing.T) {
	pods := inPlaceOfZtunnel(t)
	checkArguments(t, pods)
	capabilities := map[string][]core.Capability{"tacit-agent": {"CHOWN", "DAC_OVERRIDE", "NET_ADMIN", "SYS_ADMIN"}, "tacit-proxy": nil}
	mounts := map[string]map[string]string{
		"tacit-agent": {"/run/tacit": "rw /run/tacit", "/var/run/ztunnel": "ro /var/run/ztunnel"},
		"tacit-proxy": {"/run/tacit/agent": "ro /run/tacit/agent"},
	}
	for name, pod := range pods {
		s := pod.Spec.Containers[0].SecurityContext
		if *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault ||
			!slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) {
			t.Errorf("%s is not confined: %+v", name, s)
		}
		if diff := cmp.Diff(capabilities[name], slices.Sorted(slices.Values(s.Capabilities.Add))); diff != "" {
			t.Errorf("capabilities of %s, -want +got:\n%s", name, diff)
		}
		if diff := cmp.Diff(mounts[name], hostPaths(pod.Spec)); diff != "" {
			t.Errorf("files of the node that %s has, -want +got:\n%s", name, diff)
		}
		if pod.Spec.HostPID || pod.Spec.HostIPC || pod.Spec.HostNetwork != (name == "tacit-agent") || *pod.Spec.AutomountServiceAccountToken {
			t.Errorf("%s has more of its node or cluster than it needs", name)
		}
		if port := pod.Annotations["prometheus.io/port"]; pod.Annotations["prometheus.io/scrape"] != "true" || pod.Annotations["prometheus.io/path"] == "" ||
			!slices.ContainsFunc(pod.Spec.Containers[0].Args, func(arg string) bool { return arg == "--metrics=:"+port }) {
			t.Errorf("the Prometheus that comes with Istio does not read the metrics of %s: %v", name, pod.Annotations)
		}
		if pod.Spec.NodeSelector["tacit.mesh/in-place-of-ztunnel"] != "true" || pod.Labels["istio.io/dataplane-mode"] != "none" {
			t.Errorf("%s runs on nodes that nobody has switched, or would be captured itself", name)
		}
	}
	proxy := pods["tacit-proxy"]
	if proxy.Spec.ServiceAccountName != "ztunnel" || proxy.Labels["app"] != "ztunnel" || !*proxy.Spec.SecurityContext.RunAsNonRoot {
		t.Error("istiod gives certificates to the account ztunnel, and istioctl asks pods with the label app=ztunnel")
	}
	if !slices.Contains(proxy.Spec.Containers[0].Args, "--direct-local=false") {
		t.Error("under Istio connections within a node are not joined by default")
	}
}
