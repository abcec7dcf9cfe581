package install

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/deploy"
	"github.com/tacit-mesh/tacit/deploy/cluster"
)

// scheduled has DaemonSets be made as if pods of theirs ran on so many of two
// nodes.
func scheduled(c *cluster.Cluster, on int32) {
	c.Client.(*fake.Clientset).PrependReactor("create", "daemonsets", func(action clienttesting.Action) (bool, runtime.Object, error) {
		set := action.(clienttesting.CreateAction).GetObject().(*apps.DaemonSet)
		set.Status = apps.DaemonSetStatus{DesiredNumberScheduled: 2, NumberAvailable: on, UpdatedNumberScheduled: on}
		return false, nil, nil
	})
}

// Scouts are there while something is done, and nothing of them is afterwards,
// however that ends. What others have put beside them meanwhile stays.
func TestScoutsLeaveNothing(t *testing.T) {
	failed := errors.New("it went wrong")
	own := &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: deploy.Namespace, Labels: map[string]string{deploy.SecurityLabel: deploy.SecurityLevel}}}
	inside := meta.ObjectMeta{Namespace: deploy.Namespace, Name: "other"}
	for name, tt := range map[string]struct {
		there  []runtime.Object
		comes  runtime.Object // meanwhile
		on     int32
		does   error
		cancel bool
		done   bool // with scouts on all nodes
		want   string
		keeps  bool // the namespace
	}{
		"the key of a CA comes":  {comes: &core.Secret{ObjectMeta: inside}, on: 2, done: true, keeps: true},
		"tacitd comes":           {comes: &apps.Deployment{ObjectMeta: inside}, on: 2, done: true, keeps: true},
		"a pod comes":            {comes: &core.Pod{ObjectMeta: inside}, on: 1, done: true, want: "not every node has a pod of", keeps: true},
		"a ConfigMap comes":      {comes: &core.ConfigMap{ObjectMeta: inside}, on: 2, done: true},
		"all is well":            {on: 2, done: true},
		"it fails":               {on: 2, does: failed, done: true, want: failed.Error()},
		"the namespace is there": {there: []runtime.Object{own}, on: 2, done: true, keeps: true},
		"one node has none":      {on: 1, done: true, want: "not every node has a pod of"},
		"whoever waits goes":     {on: 1, cancel: true, want: context.Canceled.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(tt.there...)
			scheduled(c, tt.on)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var out strings.Builder
			o := Options{Timeout: time.Second, Out: &out}
			if tt.cancel {
				o.Timeout = time.Hour
				c.Client.(*fake.Clientset).PrependReactor("list", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
					cancel() // as soon as it waits
					return false, nil, nil
				})
			}
			done := false
			err := WithScouts(ctx, c, o, func(ctx context.Context) error {
				_, missing := c.Client.AppsV1().DaemonSets(c.Namespace).Get(ctx, cluster.Scout, meta.GetOptions{})
				done = missing == nil
				if tt.comes != nil {
					if err := c.Client.(*fake.Clientset).Tracker().Add(tt.comes); err != nil {
						t.Error(err)
					}
				}
				return tt.does
			})
			if done != tt.done || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("done %v, error %v; want %v, %q", done, err, tt.done, tt.want)
			}
			if _, err := c.Client.AppsV1().DaemonSets(c.Namespace).Get(t.Context(), cluster.Scout, meta.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("the scouts are left: %v", err)
			}
			if _, err := c.Client.CoreV1().Namespaces().Get(t.Context(), c.Namespace, meta.GetOptions{}); (err == nil) != tt.keeps {
				t.Errorf("the namespace: %v, want it kept: %v", err, tt.keeps)
			}
			if says := strings.Contains(out.String(), "Left: namespace "); says != (tt.comes != nil && tt.keeps) {
				t.Errorf("it says %q", out.String())
			}
		})
	}
}

// Where there are agents, these look at their nodes; where others look at them
// already, they are not disturbed.
func TestNoScoutsBesideOthers(t *testing.T) {
	set := func(name string) *apps.DaemonSet {
		return &apps.DaemonSet{ObjectMeta: meta.ObjectMeta{Namespace: deploy.Namespace, Name: name}}
	}
	done := 0
	do := func(context.Context) error { done++; return nil }
	c := connect(set(cluster.Agent))
	if err := WithScouts(t.Context(), c, Options{Out: io.Discard}, do); err != nil || done != 1 {
		t.Errorf("beside agents: done %d times, error %v", done, err)
	}
	c = connect(set(cluster.Scout))
	if err := WithScouts(t.Context(), c, Options{Out: io.Discard}, do); err == nil || !strings.Contains(err.Error(), "delete daemonset tacit-scout") || done != 1 {
		t.Errorf("beside others: done %d times, error %v", done, err)
	}
	if _, err := c.Client.AppsV1().DaemonSets(c.Namespace).Get(t.Context(), cluster.Scout, meta.GetOptions{}); err != nil {
		t.Errorf("the others are gone: %v", err)
	}
}

// A scout may do what looking at a node takes, and no more.
func TestScoutsRights(t *testing.T) {
	set, err := Options{Preset: "k3s", Set: []string{"image.registry=example.com/mesh", "agent.priorityClassName=high"}}.scouts("mesh")
	if err != nil {
		t.Fatal(err)
	}
	pod := set.Spec.Template.Spec
	container := pod.Containers[0]
	if len(pod.Containers) != 1 || container.Name != cluster.Agent || !strings.HasPrefix(container.Image, "example.com/mesh/tacit-agent:") {
		t.Errorf("containers %+v", pod.Containers)
	}
	if diff := cmp.Diff([]string{"facts", "--stay", "--cni-conf-dir=/host/cni/net.d"}, container.Args); diff != "" {
		t.Error(diff)
	}
	may := container.SecurityContext
	if diff := cmp.Diff(&core.Capabilities{Drop: []core.Capability{"ALL"}, Add: []core.Capability{"SYS_ADMIN", "NET_ADMIN", "NET_RAW"}}, may.Capabilities); diff != "" {
		t.Error(diff)
	}
	if *may.Privileged || *may.AllowPrivilegeEscalation || !*may.ReadOnlyRootFilesystem || may.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
		t.Errorf("security context %+v", may)
	}
	if pod.HostPID || *pod.AutomountServiceAccountToken || pod.ServiceAccountName != "" || pod.PriorityClassName != "" || container.Ports != nil {
		t.Errorf("pod %+v", pod)
	}
	mounted := map[string]bool{} // read only
	for _, m := range container.VolumeMounts {
		mounted[m.MountPath] = m.ReadOnly
	}
	if diff := cmp.Diff(map[string]bool{"/host/cni/net.d": true, "/run": false}, mounted); diff != "" {
		t.Errorf("mounts: %s", diff)
	}
	for _, v := range pod.Volumes {
		if path := v.HostPath; path != nil && (path.Path != "/var/lib/rancher/k3s/agent/etc/cni/net.d" || *path.Type != core.HostPathDirectory) {
			t.Errorf("of the node it has %+v", path)
		}
	}
	if len(pod.Volumes) != 2 {
		t.Errorf("volumes %+v", pod.Volumes)
	}
	without, err := Options{Set: []string{"cni.enabled=false"}}.scouts("mesh")
	if err != nil || len(without.Spec.Template.Spec.Volumes) != 1 || len(without.Spec.Template.Spec.Containers[0].Args) != 2 {
		t.Errorf("without the CNI plugin: %+v, %v", without, err)
	}
}
