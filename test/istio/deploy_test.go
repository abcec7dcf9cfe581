package istio

import (
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// deployed has the API server take what is deployed in ztunnel's place, and a pod
// of each DaemonSet in it. None comes to be: nobody here runs them.
func (m *mesh) deployed() {
	m.t.Helper()
	text, err := os.ReadFile("../../deploy/istio/tacit.yaml")
	m.must(err)
	m.apply(string(text))
	sets, err := m.cluster.Client.AppsV1().DaemonSets(system).List(m.context(), metav1.ListOptions{})
	m.must(err)
	if len(sets.Items) != 2 {
		m.t.Errorf("there are %d DaemonSets, want the agent's and the proxy's", len(sets.Items))
	}
	for _, set := range sets.Items {
		pod := &corev1.Pod{ObjectMeta: set.Spec.Template.ObjectMeta, Spec: set.Spec.Template.Spec}
		pod.Name = set.Name + "-x7k2p"
		m.eventually("a pod of "+set.Name, func() error { // the API server makes classes of priority once it has started
			made, err := m.cluster.Client.CoreV1().Pods(system).Create(m.context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict})
			if err == nil && *made.Spec.Priority < 2_000_000_000 {
				err = fmt.Errorf("its priority is %d", *made.Spec.Priority)
			}
			return err
		})
	}
	m.must(m.cluster.Delete(m.context(), "apps/v1", "DaemonSet", system, "ztunnel-tacit-agent"))
	m.must(m.cluster.Delete(m.context(), "apps/v1", "DaemonSet", system, "ztunnel-tacit-proxy"))
}
