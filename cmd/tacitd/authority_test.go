package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/internal/kube/kubetest"
)

// A rotation that was asked for by annotation shows in the ConfigMap: both
// roots, and the status, in which there is no key; a replica that starts in
// the middle of it has the same roots.
func TestRotationInACluster(t *testing.T) {
	c, f := newCluster(t), newFixture(t)
	kubetest.ShowDeletions(c.objects.(*fake.Clientset))
	f.write("token", proxyToken(t))
	asked := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "tacit-system", Name: ca.ConfigMap, Annotations: map[string]string{ca.RequestAnnotation: "1"}}}
	if _, err := c.objects.CoreV1().ConfigMaps("tacit-system").Create(t.Context(), asked, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	watch, err := c.objects.CoreV1().ConfigMaps("tacit-system").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	defer f.startOn(c, nil)()
	var roots string
	deadline := time.After(patience)
	for roots == "" {
		var m *corev1.ConfigMap
		select {
		case event := <-watch.ResultChan():
			m = event.Object.(*corev1.ConfigMap)
		case <-deadline:
			t.Fatal("no rotation in the ConfigMap")
		}
		var s ca.Status
		if err := json.Unmarshal([]byte(m.Data[ca.StatusKey]), &s); err != nil || s.Rotation == nil {
			continue
		}
		if strings.Contains(m.Data[ca.StatusKey], "nextKey") || m.Annotations[ca.RequestAnnotation] != "1" {
			t.Errorf("%s, %v", m.Data[ca.StatusKey], m.Annotations)
		}
		if s.Rotation.Phase != ca.Distribute || s.Rotation.Request != "1" || len(s.Roots) != 2 {
			t.Errorf("status %+v", s)
		}
		roots = m.Data[ca.RootsKey]
	}
	if n := strings.Count(roots, "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("%d roots in the ConfigMap", n)
	}
	defer f.startOn(c, nil)()
	f.write("ca/ca.crt", roots)
	if known := f.addresses("token", nil); len(known) != 3 {
		t.Fatalf("addresses %v, want three pods", known)
	}
	f.checkCertificates()
	again, err := (&secretStore{c.objects, "tacit-system"}).Load(t.Context())
	if err != nil || string(again.Roots) != roots {
		t.Errorf("%v; the same roots: %v", err, string(again.Roots) == roots)
	}
}

// A phase of a rotation lasts no longer than certificates live and replicas take
// to look, where proxies tell which roots they have; else also as long as
// kubelets may take to bring them.
func TestHowLongPhasesLast(t *testing.T) {
	for name, c := range map[string]struct {
		silent      bool
		least, most time.Duration
	}{
		"proxies tell":        {false, 2 * secretInterval, 20 * time.Second},
		"proxies say nothing": {true, 3 * time.Minute, 10 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			cluster, f := newCluster(t), newFixture(t)
			kubetest.ShowDeletions(cluster.objects.(*fake.Clientset))
			watch, err := cluster.objects.CoreV1().ConfigMaps("tacit-system").Watch(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer watch.Stop()
			const life = time.Minute
			defer f.startOn(cluster, func(o *options) { o.noFlows, o.maxTTL = c.silent, life })()
			for deadline := time.After(patience); ; {
				select {
				case event := <-watch.ResultChan():
					m, ok := event.Object.(*corev1.ConfigMap)
					if !ok || m.Name != ca.ConfigMap {
						continue
					}
					s := ca.PublishedStatus([]byte(m.Data[ca.StatusKey]))
					if longer := s.Phase - life; longer < c.least || longer > c.most {
						t.Errorf("%v longer than certificates live, want %v to %v", longer, c.least, c.most)
					}
					return
				case <-deadline:
					t.Fatal("nothing is said of the CA")
				}
			}
		})
	}
}

// What somebody else wrote meanwhile is never written over.
func TestSecretStore(t *testing.T) {
	c := newCluster(t)
	secret, err := newCASecret("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	secret.Namespace, secret.Name = "tacit-system", ca.Secret
	secret.Labels = map[string]string{"theirs": "kept"}
	secrets := c.objects.CoreV1().Secrets("tacit-system")
	if _, err := secrets.Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	store := &secretStore{c.objects, "tacit-system"}
	load := func() *ca.State {
		t.Helper()
		state, err := store.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return state
	}
	before := load()
	next := *before
	next.Rotation = &ca.Rotation{Phase: ca.Distribute, Request: "1", NextKey: []byte("key")}
	next.Roots = bytes.Repeat(before.Roots, 2)
	if err := store.Save(t.Context(), before, &next); err != nil || !load().Equal(&next) {
		t.Errorf("%v, %+v", err, load())
	}
	if err := store.Save(t.Context(), before, &next); !errors.Is(err, ca.ErrChanged) {
		t.Errorf("over what is newer: %v", err)
	}
	c.objects.(*fake.Clientset).PrependReactor("update", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, ca.Secret, errors.New("written meanwhile"))
	})
	if err := store.Save(t.Context(), &next, before); !errors.Is(err, ca.ErrChanged) {
		t.Errorf("in the same moment: %v", err)
	}
	now, err := secrets.Get(t.Context(), ca.Secret, metav1.GetOptions{})
	if err != nil || now.Labels["theirs"] != "kept" {
		t.Errorf("%v, %v", now, err)
	}

	now.Annotations = map[string]string{managedByCertManager: "mesh-ca"}
	if state, err := stateOf(now); err != nil || !strings.Contains(state.Fixed, "mesh-ca") {
		t.Errorf("%+v, %v", state, err)
	}
	now.Data[rotationKey] = []byte("secret")
	if _, err := stateOf(now); err == nil || strings.Contains(err.Error(), "secret ") || !strings.Contains(err.Error(), "6 bytes") {
		t.Errorf("got %v", err)
	}
}

// The last rotation is known by what people are told of it in the ConfigMap.
func TestLastRotationOfACluster(t *testing.T) {
	c := newCluster(t)
	store := &secretStore{c.objects, "tacit-system"}
	maps := c.objects.CoreV1().ConfigMaps("tacit-system")
	published := func(status string) (*ca.Rotation, error) {
		t.Helper()
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "tacit-system", Name: ca.ConfigMap}, Data: map[string]string{ca.StatusKey: status}}
		_, err := maps.Update(t.Context(), m, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			_, err = maps.Create(t.Context(), m, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := store.Published(t.Context())
		return s.Rotation, err
	}
	if last, err := store.Published(t.Context()); last.Rotation != nil || err != nil {
		t.Errorf("without a ConfigMap: %+v, %v", last, err)
	}
	if last, err := published("none"); last != nil || err != nil {
		t.Errorf("of what is no status: %+v, %v", last, err)
	}
	text, err := json.Marshal(ca.Status{Rotation: &ca.Rotation{Phase: ca.Overlap, Request: "7"}})
	if err != nil {
		t.Fatal(err)
	}
	if last, err := published(string(text)); err != nil || last == nil || last.Phase != ca.Overlap || last.Request != "7" {
		t.Errorf("%+v, %v", last, err)
	}
	c.objects.(*fake.Clientset).PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("the API is away")
	})
	if _, err := store.Published(t.Context()); err == nil || !strings.Contains(err.Error(), "the API is away") {
		t.Errorf("without an answer: %v", err)
	}
}
