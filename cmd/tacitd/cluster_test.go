package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/source/security"
)

const proxyUser = "system:serviceaccount:tacit-system:tacit-proxy"

// newCluster has two enrolled pods on two nodes, and a proxy on the first.
func newCluster(t *testing.T) *clients {
	t.Helper()
	pod := func(namespace, name, node, account, ip string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "u-1", Annotations: map[string]string{"tacit.mesh/redirection": "enabled"}},
			Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: account},
			Status:     corev1.PodStatus{PodIP: ip},
		}
	}
	client := fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"tacit.mesh/dataplane": "enabled"}}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}},
		pod("shop", "web", "n1", "web", "198.18.1.1"), pod("shop", "db", "n2", "db", "198.18.1.2"),
		pod("tacit-system", "tacit-proxy-x", "n1", "tacit-proxy", "198.18.1.3"),
	)
	client.PrependReactor("create", "tokenreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &authenticationv1.TokenReview{Status: authenticationv1.TokenReviewStatus{
			Authenticated: true, Audiences: []string{"tacitd"},
			User: authenticationv1.UserInfo{Username: proxyUser, Extra: map[string]authenticationv1.ExtraValue{
				"authentication.kubernetes.io/pod-name": {"tacit-proxy-x"}, "authentication.kubernetes.io/pod-uid": {"u-1"},
			}},
		}}, nil
	})
	lists := map[schema.GroupVersionResource]string{{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}: "CustomResourceDefinitionList"}
	for _, kind := range security.Kinds() {
		lists[schema.GroupVersionResource{Group: kind.Group(), Version: kind.Versions()[0], Resource: kind.Resource}] = kind.Kind.Kind + "List"
	}
	return &clients{objects: client, reviews: client, authority: client, dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists)}
}

func proxyToken(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jwt.Signed(signer).Claims(map[string]any{
		"sub": proxyUser, "aud": []string{"tacitd"}, "kubernetes.io": map[string]any{"pod": map[string]any{"name": "tacit-proxy-x", "uid": "u-1"}},
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// startOn runs one replica on the cluster.
func (f *fixture) startOn(c *clients, change func(*options)) (stop func()) {
	f.t.Helper()
	o := options{
		listen: "127.0.0.1:0", serverName: serverName, metrics: "127.0.0.1:0",
		settings:       build.Settings{TrustDomain: "cluster.local", RootNamespace: "tacit-system"},
		clusterOptions: clusterOptions{kubernetes: true, namespace: "tacit-system", proxyAccount: "tacit-proxy", audience: "tacitd", clients: c},
	}
	if change != nil {
		change(&o)
	}
	return f.run(o)
}

// awaitRoot takes what proxies take as their root.
func (f *fixture) awaitRoot(c *clients) {
	f.t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		m, err := c.objects.CoreV1().ConfigMaps("tacit-system").Get(f.t.Context(), "tacit-ca-root", metav1.GetOptions{})
		if err == nil && m.Data["root-cert.pem"] != "" {
			f.write("ca/ca.crt", m.Data["root-cert.pem"])
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			f.t.Fatalf("no ConfigMap: %v", err)
		}
	}
}

// A proxy gets the mesh from a replica, and from another one nothing of it
// again; both sign with the same key, for pods of the proxy's node only.
func TestReplicas(t *testing.T) {
	c, f := newCluster(t), newFixture(t)
	f.write("token", proxyToken(t))
	defer f.startOn(c, nil)()
	f.awaitRoot(c)
	s := f.connect()
	s.until(t, "the cluster's pods", func(s *model.Snapshot) bool { return s.WorkloadAt("", netip.MustParseAddr("198.18.1.2")) != nil })
	secret, err := c.objects.CoreV1().Secrets("tacit-system").Get(t.Context(), "tacit-ca", metav1.GetOptions{})
	if err != nil || secret.Type != corev1.SecretTypeTLS || len(secret.Data) != 3 {
		t.Fatalf("Secret %v, %v", secret, err)
	}
	known := f.addresses("token", nil)
	if len(known) != 3 {
		t.Fatalf("addresses %v, want three pods", known)
	}

	defer f.startOn(c, nil)()
	if again := f.addresses("token", known); len(again) > 0 {
		t.Errorf("the other replica sends again: %v", again)
	}
	again, err := c.objects.CoreV1().Secrets("tacit-system").Get(t.Context(), "tacit-ca", metav1.GetOptions{})
	if err != nil || again.ResourceVersion != secret.ResourceVersion || !reflect.DeepEqual(secret.Data, again.Data) {
		t.Errorf("the Secret was written to: %v", err)
	}
	f.checkCertificates()
}

func (f *fixture) checkCertificates() {
	f.t.Helper()
	for account, want := range map[string]string{"web": "", "db": "no enrolled pod of node n1 has the identity", "tacit-proxy": "no enrolled pod of node n1"} {
		ca, err := caclient.New(caclient.Config{Address: f.address, ServerName: serverName, RootsFile: f.path("ca/ca.crt"), TokenFile: f.path("token")})
		if err != nil {
			f.t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(f.t.Context(), patience)
		var got *identity.Material
		var failure error
		id := model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: account}
		_ = ca.Subscribe(ctx, identity.Subject{Identity: id}, func(m *identity.Material) { got = m; cancel() }, func(err error) { failure = err; cancel() })
		cancel()
		_ = ca.Close()
		if want == "" && got == nil || want != "" && (failure == nil || !strings.Contains(failure.Error(), want)) {
			f.t.Errorf("%s: got %v, %v, want %q", account, got, failure, want)
		}
	}
}

// Until everything has been listed tacitd is not ready, and says what for.
func TestReadiness(t *testing.T) {
	c, f := newCluster(t), newFixture(t)
	var broken atomic.Bool
	broken.Store(true)
	c.objects.(*fake.Clientset).PrependReactor("list", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		return broken.Load(), nil, errors.New("no nodes today")
	})
	defer f.startOn(c, func(o *options) { o.noStatus = true })()
	deadline, tick := time.After(patience), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for want := "no nodes today"; want != ""; {
		r, err := http.Get("http://" + f.metrics + "/healthz/ready") //nolint:noctx // a test's own server
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		switch {
		case err != nil:
			t.Fatal(err)
		case r.StatusCode == http.StatusOK && broken.Load():
			t.Fatal("ready without a list of nodes")
		case r.StatusCode == http.StatusOK:
			want = ""
		case broken.Load() && strings.Contains(string(text), "waiting for nodes: ") && strings.Contains(string(text), want):
			broken.Store(false)
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("status %d, %s", r.StatusCode, text)
		}
	}
	if leases, err := c.objects.CoordinationV1().Leases("tacit-system").List(t.Context(), metav1.ListOptions{}); err != nil || len(leases.Items) > 0 {
		t.Errorf("with --no-status there is a Lease: %v, %v", leases, err)
	}
}
