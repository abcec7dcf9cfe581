package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/internal/kube/kubetest"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

func TestReport(t *testing.T) {
	r := start(t, namespace("in", "enabled"), pod("in", "web"))
	r.await(t, "the first list", func(map[string]pods.Pod) bool { return true })
	r.drain(t)
	r.Report(web, pods.Problem{Reason: pods.ReasonFailed, Text: "no iptables " + strings.Repeat("x", 2000)})
	var got *corev1.Event
	until(t, "an event", func() bool {
		list, err := r.client.CoreV1().Events("in").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) == 0 {
			return false
		}
		got = &list.Items[0]
		return true
	})
	if got.Type != "Warning" || got.Reason != "CaptureFailed" || string(got.InvolvedObject.UID) != "uid-web" || len(got.Message) != maxText {
		t.Errorf("got %+v", got)
	}
}

// An event reaches the API though that cannot be reached at first; what it
// refuses is asked for once, and logged.
func TestEventsAreTriedAgain(t *testing.T) {
	events := corev1.Resource("events")
	for _, tt := range []struct {
		name   string
		errs   []error // of the first attempts
		asked  int
		logged string // empty: nothing
	}{
		{"sent at once", nil, 1, ""},
		{"the API is away", []error{errors.New("connection refused"), errors.New("connection refused")}, 3, ""},
		{"the API has too much to do", []error{apierrors.NewTooManyRequests("later", 1)}, 2, ""},
		{"an answer was lost", []error{errors.New("EOF"), apierrors.NewAlreadyExists(events, "web")}, 2, ""},
		{"refused", []error{apierrors.NewForbidden(events, "", errors.New("no"))}, 1, "may not create events"},
		{"the namespace ends", []error{apierrors.NewNotFound(events, "")}, 1, "not found"},
		{"away for long", []error{errors.New("1"), errors.New("2"), errors.New("3"), errors.New("4"), errors.New("the last")}, attempts, "the last"},
	} {
		client, asked := fake.NewClientset(), 0
		client.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
			if asked++; asked <= len(tt.errs) {
				return true, nil, tt.errs[asked-1]
			}
			return false, nil, nil
		})
		core, logs := observer.New(zap.WarnLevel)
		e := newEvents(kubetest.NodeAPI{Clientset: client}, "here", zap.New(core))
		e.retry = time.Microsecond
		e.send(t.Context(), e.of(web, pods.Problem{Reason: pods.ReasonFailed, Text: "no iptables"}, time.Now()))
		if asked != tt.asked {
			t.Errorf("%s: asked %d times, want %d", tt.name, asked, tt.asked)
		}
		said := ""
		for _, entry := range logs.All() {
			said += entry.Message + " " + entry.ContextMap()["error"].(string)
		}
		if tt.logged == "" && said != "" || !strings.Contains(said, tt.logged) {
			t.Errorf("%s: the log says %q, want %q", tt.name, said, tt.logged)
		}
	}
}

// Who reports does not wait, though nothing is sent, and no more is kept than
// there is room for.
func TestReportsWaitForNothing(t *testing.T) {
	s, err := NewSource(Config{Client: kubetest.NodeAPI{Clientset: fake.NewClientset()}, Reader: pods.Reader{Node: "here"}})
	if err != nil {
		t.Fatal(err)
	}
	for range maxWaiting + 10 {
		s.Report(web, pods.Problem{Reason: pods.ReasonFailed, Text: "no iptables"})
	}
	if n := len(s.events.waiting); n != maxWaiting {
		t.Errorf("%d events wait, want %d", n, maxWaiting)
	}
}

func TestCut(t *testing.T) {
	for _, tt := range []struct {
		text string
		most int
		want string
	}{
		{"", 3, ""}, {"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"abä", 3, "ab"}, {"aä", 3, "aä"},
	} {
		if got := cut(tt.text, tt.most); got != tt.want {
			t.Errorf("%q cut to %d bytes is %q, want %q", tt.text, tt.most, got, tt.want)
		}
	}
}
