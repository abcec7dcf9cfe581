package spire_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/spire"
	"github.com/tacit-mesh/tacit/xds/model"
)

// What SPIRE's own k8s attestor says of a pod is in its
// pkg/agent/plugin/workloadattestor/k8s/k8s.go, as of 1.13.3.
func TestSelectors(t *testing.T) {
	whole := webPod
	whole.Composition = webComposition
	unknown := identity.Pod{Identity: webPod.Identity, Composition: model.Composition{Owners: []model.Owner{{Kind: "Job", Name: "j", UID: "9"}}}}
	for name, test := range map[string]struct {
		pod  identity.Pod
		want []string
	}{
		"everything": {whole, []string{
			"container-image:docker.io/library/setup:1", "container-image:docker.io/library/setup@sha256:01",
			"container-image:docker.io/library/web:2", "container-image:docker.io/library/web@sha256:02",
			"container-name:setup", "container-name:web",
			"node-name:node-1", "ns:shop",
			"pod-image-count:2", "pod-image:docker.io/library/late:3", "pod-image:docker.io/library/web:2", "pod-image:docker.io/library/web@sha256:02",
			"pod-init-image-count:1", "pod-init-image:docker.io/library/setup:1", "pod-init-image:docker.io/library/setup@sha256:01",
			"pod-label:app:web", "pod-label:example.com/tier:front",
			"pod-name:web-1", "pod-owner-uid:ReplicaSet:5678", "pod-owner:ReplicaSet:web-5d",
			"pod-uid:1234", "sa:web",
		}},
		"no containers yet": {unknown, []string{"ns:shop", "pod-owner-uid:Job:9", "pod-owner:Job:j", "sa:web"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, strings.Split(spire.Selectors(test.pod), "\n")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Names that whoever makes a pod may choose freely make no further selectors.
func TestForgedSelectors(t *testing.T) {
	const forged = "x\npod-label:app:web\nns:kube-system"
	pod := identity.Pod{
		Identity: webPod.Identity, UID: "1234", Labels: map[string]string{"a": forged, forged: "a"},
		Composition: model.Composition{
			Containers: []model.Container{{Name: forged, Image: forged, ImageID: forged, Started: true}},
			Owners:     []model.Owner{{Kind: forged, Name: "n", UID: "u"}, {Kind: "k", Name: forged, UID: forged}},
		},
	}
	want := "ns:shop\npod-image-count:1\npod-init-image-count:0\npod-uid:1234\nsa:web"
	if got := spire.Selectors(pod); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
