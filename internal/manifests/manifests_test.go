package manifests

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	securityv1beta1 "istio.io/api/security/v1beta1"
	corev1 "k8s.io/api/core/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func kinds() []Kind {
	return []Kind{
		{APIVersions: []string{"v1"}, Kind: "Pod", Decode: Strict[corev1.Pod]},
		{APIVersions: []string{"v1"}, Kind: "Namespace", Cluster: true, Decode: Strict[corev1.Namespace]},
		{APIVersions: []string{"security.istio.io/v1", "security.istio.io/v1beta1"}, Kind: "AuthorizationPolicy",
			Decode: func(d *Document) (any, error) {
				spec := &securityv1beta1.AuthorizationPolicy{}
				return spec, d.DecodeProto("spec", spec)
			}},
	}
}

func pod(name, extra string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata:\n  name: " + name + "\n" + extra
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func keys(objects []Object) []string {
	out := []string{}
	for _, o := range objects {
		out = append(out, o.Key.String())
	}
	return out
}

func texts(errs []error, dir string) []string {
	out := []string{}
	for _, err := range errs {
		out = append(out, strings.ReplaceAll(strings.ReplaceAll(err.Error(), "\u00a0", " "), dir+"/", ""))
	}
	return out
}

func TestErrorsNameThePlace(t *testing.T) {
	policy := "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: n}\n"
	for _, test := range []struct{ name, text, want string }{
		{"unknown field", pod("a", "spec:\n  nodeNam: x\n"), `f.yaml:6: spec.nodeNam: unknown field`},
		{"unknown field deep in the second document", "# one\n---\n" + pod("a", "spec:\n  containers:\n  - name: c\n    ports:\n    - prot: 1\n"),
			`f.yaml:11: spec.containers[0].ports[0].prot: unknown field`},
		{"wrong case", pod("a", "Spec: {}\n"), `f.yaml:5: Spec: unknown field`},
		{"repeated field", pod("a", "spec:\n  nodeName: x\n  nodeName: y\n"), `f.yaml:7: spec.nodeName: duplicate field`},
		{"wrong type", pod("a", "spec:\n  hostNetwork: maybe\n"), `f.yaml:6: spec.hostNetwork: cannot be a string, want bool`},
		{"number for text", pod("a", "  annotations:\n    x: ok\n    ports: 5432\n"), `f.yaml:7: metadata.annotations.ports: cannot be a number, want string`},
		{"mapping for text", pod("a", "spec:\n  nodeName: {}\n"), `f.yaml:6: spec.nodeName: cannot be a object, want string`},
		{"number too large", pod("a", "spec:\n  containers:\n  - ports:\n    - containerPort: 99999999999\n"),
			`f.yaml:8: spec.containers[0].ports[0].containerPort: cannot be a number 99999999999, want int32`},
		{"an error that knows no position", pod("a", "  labels: {a: b}\n  creationTimestamp: yesterday\n"),
			`f.yaml:6: metadata.creationTimestamp: parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006"`},
		{"unknown field of a policy", policy + "spec:\n  rules:\n  - from:\n    - source: {namespaces: [a], namspaces: [\"ä\"]}\n",
			`f.yaml:7: spec.rules[0].from[0].source.namspaces: unknown field "namspaces"`},
		{"unknown value in a policy", policy + "spec:\n  action: DENI\n", `f.yaml:5: spec.action: invalid value for enum field action: "DENI"`},
		{"no YAML", "# one\n---\na: b\n c: [\n", `f.yaml:4: not YAML: mapping values are not allowed`},
		{"no object", "- a\n", `f.yaml:1: want an object with apiVersion, kind and metadata`},
		{"no kind", "apiVersion: v1\n", `f.yaml:1: apiVersion and kind are required`},
		{"no name", "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: x\n", `f.yaml:4: metadata.name: "": a lowercase RFC 1123`},
		{"a name that could pose as two", "apiVersion: v1\nkind: Pod\nmetadata: {name: a/b}\n", `f.yaml:3: metadata.name: "a/b": a lowercase RFC 1123`},
		{"unknown kind", "apiVersion: v1\nkind: Podd\nmetadata: {name: a}\n", `f.yaml:1: kind: Podd of v1 is not a kind that is read here`},
		{"unknown version", "apiVersion: v2\nkind: Pod\nmetadata: {name: a}\n", `f.yaml:1: kind: Pod of v2 is not a kind that is read here`},
		{"an item of a list", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a, nam: b}\n",
			`f.yaml:6: metadata.nam: unknown field`},
		{"merge key", pod("a", "spec:\n  <<: {nodeName: x}\n"), `f.yaml:6: keys must be plain strings; merging with << is not supported`},
		{"twice", pod("a", "") + "---\n" + pod("a", ""), `f.yaml:6: metadata.name: Pod default/a is also at f.yaml:1, which is the one in force`},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "f.yaml"), test.text)
			_, errs := (&Dir{Path: dir, Kinds: kinds()}).Read()
			if got := texts(errs, dir); len(got) != 1 || !strings.HasPrefix(got[0], test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestAliasesDoNotExplode(t *testing.T) {
	text := "x0: &x0 [aaaaaaaaaa]\n"
	for i := 1; i < 30; i++ {
		text += fmt.Sprintf("x%d: &x%d [*x%d, *x%d]\n", i, i, i-1, i-1)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f.yaml"), pod("a", text))
	if _, errs := (&Dir{Path: dir, Kinds: kinds()}).Read(); len(errs) != 1 || !strings.Contains(errs[0].Error(), "larger than") {
		t.Errorf("got %v, want an error about the size", errs)
	}
}

func TestReadFindsDocuments(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), "# only a comment\n---\n"+pod("one", "")+"--- # two\n"+pod("two", "  namespace: n\n")+"---\n")
	write(t, filepath.Join(dir, "sub/b.json"), `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n","namespace":"odd"}}`)
	write(t, filepath.Join(dir, "sub/list.yml"), "apiVersion: v1\nkind: List\nitems:\n- "+strings.ReplaceAll(pod("three", ""), "\n", "\n  ")+"\n")
	write(t, filepath.Join(dir, "c.yaml"), "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n")
	write(t, filepath.Join(dir, ".hidden.yaml"), "[")
	write(t, filepath.Join(dir, "notes.txt"), "[")
	if err := os.Symlink("..", filepath.Join(dir, "sub/loop")); err != nil {
		t.Fatal(err)
	}
	d := Dir{Path: dir, Kinds: kinds(), Ignore: func(v, _ string) bool { return v == "apps/v1" }}
	objects, errs := d.Read()
	if len(errs) > 0 {
		t.Error(errs)
	}
	want := []string{"Namespace n", "Pod default/one", "Pod default/three", "Pod n/two"}
	if diff := cmp.Diff(want, keys(objects)); diff != "" {
		t.Error(diff)
	}
	if two := objects[3]; two.Line != 8 || two.Value.(*corev1.Pod).Name != "two" {
		t.Errorf("two is %+v, want line 8", two)
	}
}

// step is one call of Run's callback.
type step struct {
	objects []Object
	errs    []error
}

// follow runs a Dir until the test ends and hands out what it reports.
func follow(t *testing.T, path string) func() step {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	steps, done := make(chan step, 10), make(chan struct{})
	go func() {
		defer close(done)
		d := Dir{Path: path, Kinds: kinds()}
		_ = d.Run(ctx, func(o []Object, e []error) { steps <- step{o, e} })
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

func (s step) is(t *testing.T, errs int, want ...string) {
	t.Helper()
	got := keys(s.objects)
	slices.Sort(want)
	if !slices.Equal(got, want) || len(s.errs) != errs {
		t.Fatalf("got objects %q and errors %q, want %q and %d errors", got, s.errs, want, errs)
	}
}

func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".tmp", text)
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

func TestLastGoodStays(t *testing.T) {
	dir := t.TempDir()
	f, g := filepath.Join(dir, "f.yaml"), filepath.Join(dir, "g.yaml")
	write(t, f, pod("a", "")+"---\n"+pod("b", ""))
	next := follow(t, dir)
	first := next()
	first.is(t, 0, "Pod default/a", "Pod default/b")

	replace(t, f, pod("a", "spec: {wrong: 1}\n")+"---\n"+pod("c", ""))
	s := next()
	s.is(t, 1, "Pod default/a", "Pod default/c") // b is gone, a broken
	if s.objects[0].Value != first.objects[0].Value {
		t.Error("a is not its last good version")
	}
	replace(t, f, "[")
	next().is(t, 1, "Pod default/a", "Pod default/c")
	write(t, g, pod("a", "spec: {nodeName: x}\n")) // a moved to another file
	s = next()
	s.is(t, 1, "Pod default/a", "Pod default/c")
	if s.objects[0].Value.(*corev1.Pod).Spec.NodeName != "x" {
		t.Error("a is not the version that can be read")
	}
	replace(t, f, "")
	next().is(t, 1, "Pod default/a", "Pod default/c") // empty: nobody deletes so
	replace(t, f, "# nothing any more\n")
	next().is(t, 0, "Pod default/a")
	if err := os.Remove(g); err != nil {
		t.Fatal(err)
	}
	next().is(t, 0)
}

func TestDuplicateDoesNotTakeOver(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "m.yaml"), pod("a", "spec: {nodeName: first}\n"))
	next := follow(t, dir)
	next().is(t, 0, "Pod default/a")
	write(t, filepath.Join(dir, "a.yaml"), pod("a", "spec: {nodeName: second}\n"))
	s := next()
	s.is(t, 1, "Pod default/a")
	if got := s.objects[0].Value.(*corev1.Pod).Spec.NodeName; got != "first" {
		t.Errorf("%q took over", got)
	}
}

func TestDirectoryThatVanishesKeepsEverything(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	write(t, filepath.Join(dir, "f.yaml"), pod("a", ""))
	next := follow(t, dir)
	next().is(t, 0, "Pod default/a")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	next().is(t, 1, "Pod default/a")
	write(t, filepath.Join(dir+".new", "f.yaml"), pod("b", ""))
	if err := os.Rename(dir+".new", dir); err != nil {
		t.Fatal(err)
	}
	next().is(t, 0, "Pod default/b")
	write(t, filepath.Join(dir, "new", "g.yaml"), pod("c", ""))
	next().is(t, 0, "Pod default/b", "Pod default/c")
}

// A mounted ConfigMap: files are links through a link that is swapped.
func TestLinkSwap(t *testing.T) {
	for _, test := range []struct{ name, link, read string }{
		{"mounted ConfigMap", "..data", ""},
		{"the directory itself", "current", "current"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "..1/f.yaml"), pod("a", ""))
			write(t, filepath.Join(dir, "..2/f.yaml"), pod("b", ""))
			for from, to := range map[string]string{"..1": test.link, test.link + "/f.yaml": "f.yaml"} {
				if err := os.Symlink(from, filepath.Join(dir, to)); err != nil {
					t.Fatal(err)
				}
			}
			next := follow(t, filepath.Join(dir, test.read))
			next().is(t, 0, "Pod default/a")
			if err := os.Symlink("..2", filepath.Join(dir, "tmp")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, test.link)); err != nil {
				t.Fatal(err)
			}
			next().is(t, 0, "Pod default/b")
			replace(t, filepath.Join(dir, "..2/f.yaml"), pod("c", ""))
			next().is(t, 0, "Pod default/c")
		})
	}
}

func TestPodUID(t *testing.T) {
	if got := PodUID("own", "n", "p"); got != "own" {
		t.Errorf("got %q, want the pod's own", got)
	}
	a, b := PodUID("", "n", "p"), PodUID("", "np", "")
	if a == b || a != PodUID("", "n", "p") || len(a) != 36 || a[14] != '5' {
		t.Errorf("derived %q and %q", a, b)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(pod("a", "spec: {nodeName: x}\n") + "---\n- &a [*a]\n"))
	f.Add([]byte("--- {apiVersion: v1, kind: List, items: [1]}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		(&Dir{Kinds: kinds()}).parse("f", data)
	})
}
