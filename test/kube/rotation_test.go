package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/proxy/admin"
)

// shortLife is that of certificates whose root is replaced while somebody
// waits: each phase of that is somewhat longer.
const shortLife = 20 * time.Second

// shortenCertificates has tacitd, which is not there, give certificates a short
// life once it is. As no node has one from before, the longer life of those need
// not be waited for, so that is forgotten.
func (e environment) shortenCertificates() {
	e.t.Helper()
	argument := []byte(fmt.Sprintf(`[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--max-certificate-ttl=%v"}]`, shortLife))
	_, err := e.Client.AppsV1().Deployments(Namespace).Patch(e.ctx, "tacitd", types.JSONPatchType, argument, metav1.PatchOptions{})
	e.must(err, e.Patch(e.ctx, "v1", "ConfigMap", Namespace, ca.ConfigMap, fmt.Sprintf("data: {%s: null}", ca.StatusKey)))
}

// The CA's root is replaced under load, by the command, and nobody notices.
func (e environment) replaceRoot(web clients) {
	e.t.Helper()
	before := e.awaitAuthority("certificates live for a short time", func(s ca.Status) bool { return s.Phase < time.Minute })
	_, err := e.Tacit(e.ctx, "ca", "rotate", "--no-wait")
	e.must(err)
	// A kubelet looks for a newer ConfigMap once a minute, and whenever a pod
	// that has it changes.
	for _, pod := range e.podNames(Namespace, "app.kubernetes.io/name=tacit-proxy") {
		e.must(e.Patch(e.ctx, "v1", "Pod", Namespace, pod, "metadata: {annotations: {looked-at-by-test: now}}"))
	}
	e.awaitAuthority("the new root signs", func(s ca.Status) bool {
		phase := s.Rotation.Phase
		if wrong := (phase == ca.Overlap) == (s.Signer == before.Signer); wrong || len(s.Roots) != 2 {
			e.t.Errorf("in phase %s %v signs, of %v", phase, s.Signer, s.Roots)
		}
		return phase == ca.Overlap
	})
	after := e.awaitAuthority("the old root is not handed out any more", func(s ca.Status) bool { return s.Rotation.Phase == ca.Retire })
	if after.Signer == before.Signer || len(after.Roots) != 1 || after.Roots[0] != after.Signer {
		e.t.Errorf("%v signs, of %v", after.Signer, after.Roots)
	}
	if signed := e.signers(); len(signed) != 1 || signed[0] != after.Signer.Name {
		e.t.Errorf("certificates are signed by %q, want %q alone", signed, after.Signer.Name)
	}
	e.awaitEncrypted(web.namespace)
	web.progress()
	web.wantNoFailure("the CA's root was replaced")
}

// awaitAuthority waits until tacitd says of its CA what is wanted.
func (e environment) awaitAuthority(what string, wanted func(ca.Status) bool) (s ca.Status) {
	e.t.Helper()
	err := Await(e.ctx, e.Cluster, Namespace, ca.ConfigMap, func(m *corev1.ConfigMap) error {
		if s = ca.PublishedStatus([]byte(m.Data[ca.StatusKey])); s.Phase == 0 || !wanted(s) {
			return fmt.Errorf("%s", m.Data[ca.StatusKey])
		}
		return nil
	})
	if err != nil {
		e.t.Fatalf("%s: %v", what, err)
	}
	return s
}

// signers are the issuers of all certificates of all nodes.
func (e environment) signers() []string {
	e.t.Helper()
	text, err := e.Tacit(e.ctx, "certs", "-o", "json")
	e.must(err)
	var answer struct {
		Nodes []struct{ Certificates []admin.Certificate }
	}
	e.must(json.Unmarshal([]byte(text), &answer))
	all := map[string]bool{}
	for _, node := range answer.Nodes {
		for _, c := range node.Certificates {
			all[c.Issuer] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}
