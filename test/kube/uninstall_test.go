package kube

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// nodeState prints what an installation may change on a node. Rules of
// Kubernetes and of its CNI plugins change with every pod and service.
const nodeState = `
for save in iptables-save ip6tables-save; do
  echo "== $save"
  $save | sed -e 's/\[[0-9:]*\]//' | grep -v -e KUBE- -e CNI- -e '^[#*]' -e ^COMMIT -e '^:[A-Z]* ACCEPT'
done
echo "== rules of routing"
ip rule; ip -6 rule
echo "== CNI"
ls -l --time-style=+ /opt/cni/bin | sed 1d
for f in /etc/cni/net.d/*; do echo "-- $f"; cat "$f"; done
echo "== files"
find /run/tacit* /var/lib/tacit* /var/run/tacit* 2>/dev/null
true
`

// nodeStates are what an installation may change, by node: on it and in its
// object.
func (e environment) nodeStates() map[string]string {
	e.t.Helper()
	states := map[string]string{}
	list, err := e.Client.CoreV1().Nodes().List(e.ctx, metav1.ListOptions{})
	e.must(err)
	for _, object := range list.Items {
		var text strings.Builder
		for _, taint := range object.Spec.Taints {
			text.WriteString("taint " + taint.ToString() + "\n")
		}
		for _, names := range []map[string]string{object.Labels, object.Annotations} {
			for key := range names {
				if strings.Contains(key, "tacit") {
					text.WriteString("label or annotation " + key + "\n")
				}
			}
		}
		if node := e.Node(object.Name); node != nil {
			out, err := node.Run(e.ctx, "bash", "-c", nodeState)
			e.must(err)
			text.WriteString(out)
		}
		states[object.Name] = text.String()
	}
	return states
}

// uninstall takes Tacit away from under live traffic. It says how many connections
// it cut, which are those that would not end; everything else goes on in clear.
func (e environment) uninstall() {
	e.t.Helper()
	e.newNamespace("shop", inMesh())
	e.newNamespace("web", inMesh())
	e.serve("shop", "shop")
	web := e.load("web", "web", "shop.shop")
	e.awaitEncrypted("web")
	out, err := e.Tacit(e.ctx, "uninstall", "--drain=10s")
	if err != nil {
		e.t.Error(err, out)
	}
	_, said, _ := strings.Cut(out, "\nCutting ")
	cut, _, _ := strings.Cut(said, " connections")
	count, err := strconv.ParseInt(cut, 10, 64)
	if err != nil {
		e.t.Errorf("uninstall does not say how many connections it cut: %v in\n%s", err, out)
	}
	web.progress()
	reports := web.reports()
	for pod, report := range reports {
		if errs := fmt.Sprint(report.Streams.Errors, report.Requests.Errors); strings.Contains(errs, "timeout") || strings.Contains(errs, "deadline") {
			e.t.Errorf("%s waits on connections that were cut: %s", pod, errs)
		}
		failed := report.Streams.Failed + report.Requests.Failed
		if count -= failed; report.Exchanges.Failed > 0 || report.Streams.Failed == 0 || count < 0 {
			e.t.Errorf("%s connections were cut, it says; %s had %d exchanges, %d streams and %d requests fail; of all: %+v", cut, pod,
				report.Exchanges.Failed, report.Streams.Failed, report.Requests.Failed, reports)
		}
	}
	for _, node := range e.nodes {
		left, err := node.Run(e.ctx, "bash", "-c", podState)
		if e.must(err); left != "" {
			e.t.Errorf("left in pods of %s:\n%s", node.Name, left)
		}
	}
}

// podState prints what capture leaves in pods of a node.
const podState = `
for pod in /run/netns/*; do
  in="nsenter --net=$pod"
  for save in iptables-save ip6tables-save; do $in $save | grep -i tacit; done
  { $in ip rule; $in ip -6 rule; } | grep fwmark
  $in ss --no-header --listening --tcp --numeric | grep -E ':(15001|15006|15008)\b'
done
true
`

// wantNodesAs checks that nodes are as they were, and that no object of Tacit
// outside its namespace is left, nor that.
func (e environment) wantNodesAs(before map[string]string) {
	e.t.Helper()
	if diff := cmp.Diff(before, e.nodeStates()); diff != "" {
		e.t.Errorf("the nodes are not as they were before the installation (- before, + after):\n%s", diff)
	}
	selector := metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=tacit"}
	roles, err := e.Client.RbacV1().ClusterRoles().List(e.ctx, selector)
	e.must(err)
	bindings, err := e.Client.RbacV1().ClusterRoleBindings().List(e.ctx, selector)
	e.must(err)
	if len(roles.Items)+len(bindings.Items) > 0 {
		e.t.Errorf("left are %d ClusterRoles and %d bindings", len(roles.Items), len(bindings.Items))
	}
	if pods := e.podNames(Namespace, ""); len(pods) > 0 {
		e.t.Errorf("left in %s are pods %v", Namespace, pods)
	}
}
