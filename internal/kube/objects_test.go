package kube

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const namespace = "ns"

// Several programs that find no Secret at the same time all end with the same.
func TestCreateOnceTogether(t *testing.T) {
	client := fake.NewClientset()
	const programs = 8
	var all sync.WaitGroup // until each has found none
	all.Add(programs)
	results := make(chan string, programs)
	for i := range programs {
		go func() {
			got, err := CreateOnce(t.Context(), client, namespace, "s", func() (*corev1.Secret, error) {
				all.Done()
				all.Wait()
				return &corev1.Secret{Data: map[string][]byte{"who": fmt.Append(nil, i)}}, nil
			})
			if err != nil {
				results <- err.Error()
				return
			}
			results <- string(got.Data["who"])
		}()
	}
	first := <-results
	for range programs - 1 {
		if got := <-results; got != first {
			t.Errorf("one got %q, another %q", first, got)
		}
	}
	kept, err := client.CoreV1().Secrets(namespace).Get(t.Context(), "s", metav1.GetOptions{})
	if err != nil || string(kept.Data["who"]) != first {
		t.Errorf("kept %v, %v, want %q", kept, err, first)
	}
}

func TestCreateOnceLeavesWhatIsThere(t *testing.T) {
	client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "s"}, Data: map[string][]byte{"k": []byte("v")}})
	got, err := CreateOnce(t.Context(), client, namespace, "s", func() (*corev1.Secret, error) { return nil, errors.New("made another") })
	if err != nil || string(got.Data["k"]) != "v" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, a := range client.Actions() {
		if a.GetVerb() != "get" {
			t.Errorf("it was written to: %v", a)
		}
	}
}

func TestKeepConfigMap(t *testing.T) {
	client := fake.NewClientset()
	maps := client.CoreV1().ConfigMaps(namespace)
	for _, step := range []struct {
		name   string
		before func(*corev1.ConfigMap)
		want   map[string]string
		writes int
	}{
		{"made", nil, map[string]string{"k": "v"}, 1},
		{"as it is", nil, map[string]string{"k": "v"}, 0},
		{"changed by another", func(m *corev1.ConfigMap) { m.Data = map[string]string{"k": "w", "other": "x"} }, map[string]string{"k": "v", "other": "x"}, 1},
		{"emptied", func(m *corev1.ConfigMap) { m.Data = nil }, map[string]string{"k": "v"}, 1},
	} {
		if step.before != nil {
			m, err := maps.Get(t.Context(), "m", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			step.before(m)
			if _, err := maps.Update(t.Context(), m, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		client.ClearActions()
		if err := KeepConfigMap(t.Context(), client, namespace, "m", map[string]string{"k": "v"}); err != nil {
			t.Fatal(err)
		}
		writes := 0
		for _, a := range client.Actions() {
			if a.GetVerb() != "get" {
				writes++
			}
		}
		m, err := maps.Get(t.Context(), "m", metav1.GetOptions{})
		if err != nil || fmt.Sprint(m.Data) != fmt.Sprint(step.want) || writes != step.writes {
			t.Errorf("%s: %v after %d writes, %v", step.name, m.Data, writes, err)
		}
	}
}

// A conflict is tried again on what the other wrote.
func TestKeepConfigMapConflict(t *testing.T) {
	client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "m"}})
	conflicts := 0
	client.PrependReactor("update", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		conflicts++
		return conflicts == 1, nil, apierrors.NewConflict(schema.GroupResource{Resource: "configmaps"}, "m", nil)
	})
	if err := KeepConfigMap(t.Context(), client, namespace, "m", map[string]string{"k": "v"}); err != nil || conflicts != 2 {
		t.Errorf("%v after %d attempts", err, conflicts)
	}
}

func TestForbiddenNamesTheVerb(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "s", nil)
	})
	_, err := CreateOnce(t.Context(), client, namespace, "s", func() (*corev1.Secret, error) { return &corev1.Secret{}, nil })
	if err == nil || !strings.Contains(err.Error(), "grant this program's ServiceAccount the verb create on secrets, in a Role in namespace ns") {
		t.Errorf("got %v", err)
	}
}

// A text in a ConfigMap is what all who merge into it make of it.
func TestMergeConfigMap(t *testing.T) {
	client := fake.NewClientset()
	conflicts := 1
	client.PrependReactor("update", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		if conflicts--; conflicts >= 0 {
			return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "configmaps"}, "m", errors.New("another was faster"))
		}
		return false, nil, nil
	})
	for _, word := range []string{"a", "b", ""} {
		if err := MergeConfigMap(t.Context(), client, namespace, "m", "k", func(kept string) (string, error) { return kept + word, nil }); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := client.CoreV1().ConfigMaps(namespace).Get(t.Context(), "m", metav1.GetOptions{})
	if err != nil || kept.Data["k"] != "ab" {
		t.Errorf("kept %v, %v", kept.Data, err)
	}
	writes := 0
	for _, a := range client.Actions() {
		if a.GetVerb() == "update" {
			writes++
		}
	}
	if writes != 2 { // the one that failed, and no third for what does not change
		t.Errorf("%d writes", writes)
	}
	refuse := errors.New("no")
	if err := MergeConfigMap(t.Context(), client, namespace, "m", "k", func(string) (string, error) { return "", refuse }); !errors.Is(err, refuse) {
		t.Errorf("got %v", err)
	}
}
