package pods_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/redirect/enrol"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

// An agent that lets go wants no pod, by whatever label it was in the mesh.
func TestReleaseLetsAllPodsGo(t *testing.T) {
	labels := map[string]string{enrol.Label: enrol.Enabled}
	for name, labelled := range map[string][2]map[string]string{"pod": {labels, nil}, "namespace": {nil, labels}} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", Labels: labelled[0]}}
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: labelled[1]}}
		for _, release := range []bool{false, true} {
			if got := (pods.Reader{Release: release}).Read(pod, namespace); got.Capture == release {
				t.Errorf("label on the %s, release %v: capture is %v", name, release, got.Capture)
			}
		}
	}
}
