package files

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	securityv1beta1 "istio.io/api/security/v1beta1"

	"github.com/tacit-mesh/tacit/xds/build"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const everything = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tacit.mesh/dataplane: enabled}}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 198.18.1.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {selector: {app: a}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
endpoints: [{addresses: [198.18.1.1]}]
ports: [{port: 8080}]
---
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  action: DENY
  rules:
  - from: [{source: {notNamespaces: [shop]}}]
    when: [{key: "source.labels[app]", values: [x]}]
status: {conditions: []}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: sa}
`

type step struct {
	objects *build.Objects
	errs    []error
}

func run(t *testing.T, dir string) func() step {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	steps, done := make(chan step, 10), make(chan struct{})
	go func() {
		defer close(done)
		s := Source{Dir: dir}
		_ = s.Run(ctx, func(o *build.Objects, errs []error) { steps <- step{o, errs} })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func() step {
		t.Helper()
		select {
		case s := <-steps:
			return s
		case <-time.After(20 * time.Second):
			t.Fatal("no change was reported")
			panic("unreachable")
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestEveryKindIsRead(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "all.yaml"), everything)
	s := run(t, dir)()
	if len(s.errs) > 0 || s.objects == nil {
		t.Fatalf("errors %v", s.errs)
	}
	o := s.objects
	for name, n := range map[string]int{
		"Namespaces": len(o.Namespaces), "Nodes": len(o.Nodes), "Pods": len(o.Pods), "Services": len(o.Services),
		"EndpointSlices": len(o.EndpointSlices), "AuthorizationPolicies": len(o.AuthorizationPolicies), "PeerAuthentications": len(o.PeerAuthentications),
	} {
		if n != 1 {
			t.Fatalf("%d %s, want 1", n, name)
		}
	}
	if p := o.Pods[0]; len(p.UID) != 36 {
		t.Errorf("the pod's UID is %q, want one derived from its name", p.UID)
	}
	if o.Services[0].Namespace != "default" || o.EndpointSlices[0].Namespace != "default" {
		t.Error("the namespace is not filled in")
	}
	auth := o.AuthorizationPolicies[0]
	if auth.Name != "p" || auth.Namespace != "shop" || auth.Spec.Action != securityv1beta1.AuthorizationPolicy_DENY || len(auth.Spec.Rules[0].When) != 1 {
		t.Errorf("policy %v", auth)
	}
	if peer := o.PeerAuthentications[0]; peer.Spec.PortLevelMtls[8080].GetMode() != securityv1beta1.PeerAuthentication_MutualTLS_DISABLE {
		t.Errorf("policy %v", peer)
	}
}

func TestBrokenPolicy(t *testing.T) {
	good := "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {action: DENY}\n"
	for _, test := range []struct{ name, text, want string }{
		{"unknown field", strings.Replace(good, "action", "acton", 1), `f.yaml:4: spec.acton: unknown field "acton"`},
		{"unknown metadata", strings.Replace(good, "name: p", "name: p, label: {}", 1), "f.yaml:3: metadata.label: unknown field"},
		{"unknown top field", good + "specs: {}\n", "f.yaml:5: specs: unknown field"},
		{"unknown kind of policy", strings.Replace(good, "AuthorizationPolicy", "SomethingElse", 1), "f.yaml:1: kind: SomethingElse"},
		{"misspelt kind", strings.Replace(strings.Replace(good, "security.istio.io/", "", 1), "AuthorizationPolicy", "Podd", 1), "f.yaml:1: kind: Podd"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			f := filepath.Join(dir, "f.yaml")
			write(t, f, test.text)
			next := run(t, dir)
			s := next()
			if s.objects != nil || len(s.errs) == 0 || !strings.Contains(s.errs[0].Error(), test.want) {
				t.Fatalf("at the start: objects %v and errors %v, want nothing served and %q", s.objects, s.errs, test.want)
			}
			write(t, f, good)
			if s = next(); s.objects == nil || len(s.errs) > 0 {
				t.Fatalf("mended: objects %v and errors %v", s.objects, s.errs)
			}
			write(t, f, test.text)
			s = next()
			if s.objects == nil || len(s.objects.AuthorizationPolicies) != 1 && test.name != "unknown kind of policy" && test.name != "misspelt kind" || len(s.errs) == 0 {
				t.Fatalf("broken again: objects %v and errors %v, want the last good version", s.objects, s.errs)
			}
		})
	}
}

func TestBrokenPodHoldsNothingUp(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f.yaml"), strings.Replace(everything, "nodeName", "nodename", 1))
	s := run(t, dir)()
	if s.objects == nil || len(s.objects.Pods) != 0 || len(s.objects.AuthorizationPolicies) != 1 || len(s.errs) != 1 {
		t.Errorf("objects %v and errors %v, want all but the pod", s.objects, s.errs)
	}
}
