//go:build !inpod

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tacit-mesh/tacit/cmd/tacit/show"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/identity/ca"
)

// script is a desk whose tacitd takes a step whenever it is looked at.
type script struct {
	state    ca.Status
	phases   []ca.Phase // to come, once there is a request
	requests []string
	looked   func()
	broken   int // looks that fail
}

func (s *script) status(context.Context) (ca.Status, error) {
	if s.looked != nil {
		s.looked()
	}
	if s.broken > 0 {
		s.broken--
		return ca.Status{}, errors.New("no API for a moment")
	}
	if (len(s.requests) > 0 || s.state.Rotation != nil) && len(s.phases) > 0 {
		r := ca.Rotation{Request: "theirs", From: "CN=old", To: "CN=new", Phase: s.phases[0], Began: time.Now(), Until: time.Now().Add(time.Hour)}
		if len(s.requests) > 0 {
			r.Request = s.requests[0]
		}
		if s.state.Rotation.Active() {
			r.LeaveBehind = s.state.Rotation.LeaveBehind
		}
		s.state.Rotation, s.phases = &r, s.phases[1:]
	}
	return s.state, nil
}

func (s *script) request(_ context.Context, id string) error {
	s.requests = append(s.requests, id)
	return nil
}

var allPhases = []ca.Phase{ca.Distribute, ca.Distribute, ca.Overlap, ca.Retire, ca.Done}

func idle() ca.Status {
	return ca.Status{Signer: ca.Root{Name: "CN=old", NotAfter: time.Now().Add(1000 * time.Hour)}, Phase: 24 * time.Hour}
}

func rotate(ctx context.Context, d desk, dryRun bool, change func(*rotation)) (string, error) {
	var out bytes.Buffer
	r := rotation{desk: d, out: &out, interval: time.Millisecond}
	if change != nil {
		change(&r)
	}
	err := r.run(ctx, dryRun)
	return out.String(), err
}

func TestRotate(t *testing.T) {
	s := &script{state: idle(), phases: slices.Clone(allPhases)}
	// That of an earlier rotation is not mistaken for the new one.
	s.state.Rotation = &ca.Rotation{Request: "earlier", Phase: ca.Done}
	s.phases = append([]ca.Phase{ca.Done}, s.phases...)
	text, err := rotate(t.Context(), s, false, func(*rotation) { s.looked = func() { s.broken, s.looked = 1, nil } })
	if err == nil || !strings.Contains(err.Error(), "no API") || len(s.requests) > 0 {
		t.Fatalf("%s, %v: asked without knowing how it is", text, err)
	}
	looks := 0
	s.looked = func() {
		if looks++; looks == 3 {
			s.broken = 1
		}
	}
	text, err = rotate(t.Context(), s, false, nil)
	if err != nil || len(s.requests) != 1 {
		t.Fatalf("%s, %v, %d requests", text, err, len(s.requests))
	}
	at := 0
	for _, want := range []string{"from  CN=old\nto    CN=new\n", "distribute  until ", "waiting: no API", "overlap     until ", "retire      until ", "done        nobody knows the old root any more\n"} {
		i := strings.Index(text[at:], want)
		if i < 0 || strings.Count(text, want) != 1 {
			t.Fatalf("%q is not there once, in its place:\n%s", want, text)
		}
		at += i
	}
}

// What is under way is shown, and nothing is asked for.
func TestRotationUnderWay(t *testing.T) {
	s := &script{state: idle(), phases: slices.Clone(allPhases[2:])}
	s.state.Fixed = "nothing that matters any more"
	s.state.Rotation = &ca.Rotation{Phase: ca.Distribute}
	text, err := rotate(t.Context(), s, false, nil)
	if err != nil || len(s.requests) > 0 || !strings.Contains(text, "A rotation is under way.") || !strings.Contains(text, "done") {
		t.Errorf("%s, %v, %d requests", text, err, len(s.requests))
	}
}

// Nodes that are behind are named, in the plan too, and left behind by those who
// say so, also later.
func TestRotateNamesNodes(t *testing.T) {
	behind := &ca.Progress{Have: 1, Of: 3, Behind: []ca.Behind{{Node: "b", Why: "its --root"}}}
	s := &script{state: idle()}
	s.state.Rotation = &ca.Rotation{Phase: ca.Distribute, Until: time.Now().Add(-time.Minute), Nodes: behind}
	wants := []string{"1 of 3 nodes have the new root\n  not yet b: its --root\n  not yet 1 more\n", "--leave-behind has it go on without"}
	plan, err := rotate(t.Context(), s, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	var shown bytes.Buffer
	screen := show.NewRotation(&shown, 0)
	for range 3 {
		screen.Show(*s.state.Rotation, time.Now())
	}
	for _, want := range wants {
		if !strings.Contains(plan, want) || strings.Count(shown.String(), want) != 1 {
			t.Errorf("no %q, or more than one, in\n%s\nor\n%s", want, plan, shown.String())
		}
	}
	s.phases = slices.Clone(allPhases[2:])
	leave := func(r *rotation) { r.leaveBehind = true }
	if text, err := rotate(t.Context(), s, false, leave); err != nil || len(s.requests) != 1 || !strings.HasSuffix(s.requests[0], ca.LeaveBehind) {
		t.Errorf("%s, %v, requests %q", text, err, s.requests)
	}
	s = &script{state: idle(), phases: slices.Clone(allPhases)}
	if text, err := rotate(t.Context(), s, false, leave); err != nil || len(s.requests) != 1 || !strings.HasSuffix(s.requests[0], ca.LeaveBehind) {
		t.Errorf("%s, %v, requests %q", text, err, s.requests)
	}
	s = &script{state: idle(), phases: slices.Clone(allPhases[2:])}
	s.state.Rotation = &ca.Rotation{Phase: ca.Distribute, LeaveBehind: true}
	if text, err := rotate(t.Context(), s, false, leave); err != nil || len(s.requests) != 0 {
		t.Errorf("%s, %v, requests %q: it is so already", text, err, s.requests)
	}
}

func TestRotateDryRun(t *testing.T) {
	s := &script{state: idle()}
	text, err := rotate(t.Context(), s, true, nil)
	if err != nil || len(s.requests) > 0 {
		t.Fatalf("%v, %d requests", err, len(s.requests))
	}
	for _, want := range []string{"Nothing is changed", "CN=old", "distribute", "overlap", "retire", "(in 2d"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	s.state.Rotation = &ca.Rotation{Phase: ca.Overlap, From: "CN=older", To: "CN=newer", Until: time.Now().Add(time.Hour)}
	if text, err = rotate(t.Context(), s, true, nil); err != nil || strings.Contains(text, "distribute") || !strings.Contains(text, "CN=newer") || !strings.Contains(text, "under way") {
		t.Errorf("%v:\n%s", err, text)
	}
}

func TestRotateEndsEarly(t *testing.T) {
	s := &script{state: idle(), phases: slices.Clone(allPhases)}
	if text, err := rotate(t.Context(), s, false, func(r *rotation) { r.noWait = true }); err != nil || strings.Contains(text, "overlap") {
		t.Errorf("--no-wait: %v\n%s", err, text)
	}

	s = &script{state: idle(), phases: slices.Clone(allPhases[:1])}
	ctx, cancel := context.WithCancel(t.Context())
	looks := 0
	s.looked = func() {
		if looks++; looks == 4 {
			cancel()
		}
	}
	if _, err := rotate(ctx, s, false, nil); err == nil || !strings.Contains(err.Error(), "goes on by itself") {
		t.Errorf("interrupted: %v", err)
	}

	s = &script{state: idle()}
	s.state.Fixed = "it is cert-manager's"
	if _, err := rotate(t.Context(), s, false, nil); err == nil || !strings.Contains(err.Error(), "cannot be rotated by tacitd: it is cert-manager's") || len(s.requests) > 0 {
		t.Errorf("got %v", err)
	}
}

func TestDeskOfCluster(t *testing.T) {
	client := fake.NewClientset()
	d := clusterDesk{&cluster.Cluster{Namespace: "tacit-system", Client: client}}
	if _, err := d.status(t.Context()); err == nil || !strings.Contains(err.Error(), "see that it runs, in this version") {
		t.Errorf("got %v", err)
	}
	text, err := json.Marshal(idle())
	if err != nil {
		t.Fatal(err)
	}
	m := &core.ConfigMap{ObjectMeta: meta.ObjectMeta{Namespace: "tacit-system", Name: ca.ConfigMap}, Data: map[string]string{ca.StatusKey: string(text), ca.RootsKey: "roots"}}
	if _, err := client.CoreV1().ConfigMaps("tacit-system").Create(t.Context(), m, meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if s, err := d.status(t.Context()); err != nil || s.Signer.Name != "CN=old" || s.Phase != 24*time.Hour {
		t.Errorf("%+v, %v", s, err)
	}
	if err := d.request(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	m, err = client.CoreV1().ConfigMaps("tacit-system").Get(t.Context(), ca.ConfigMap, meta.GetOptions{})
	if err != nil || m.Annotations[ca.RequestAnnotation] != "one" || m.Data[ca.RootsKey] != "roots" {
		t.Errorf("%v, %v", m, err)
	}
}

// The directory of a tacitd that runs here.
func TestDeskOfDirectory(t *testing.T) {
	dir := t.TempDir()
	if _, err := dirDesk(dir).status(t.Context()); err == nil || !strings.Contains(err.Error(), "of a running tacitd") {
		t.Errorf("got %v", err)
	}
	store, err := ca.OpenDir(dir, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.New(t.Context(), store, ca.Config{TrustDomain: "cluster.local", Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- authority.Run(ctx) }()
	go func() { ended <- store.Publish(ctx, authority) }()
	defer func() {
		cancel()
		for range 2 {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err := dirDesk(dir).status(t.Context()); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	text, err := rotate(t.Context(), dirDesk(dir), false, func(r *rotation) { r.noWait = true })
	if err != nil || !strings.Contains(text, "distribute  until ") || !strings.Contains(text, "from  CN=Tacit root of cluster.local ") {
		t.Errorf("%v:\n%s", err, text)
	}
}
