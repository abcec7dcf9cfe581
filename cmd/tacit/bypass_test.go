//go:build !inpod

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/xds/source/files"
)

// bypassCalls runs "tacit bypass" with arguments that always are the same at
// the end.
func bypassCalls(t *testing.T, connect func() (*cluster.Cluster, error), always ...string) func(args ...string) (string, error) {
	return func(args ...string) (string, error) {
		t.Helper()
		var out bytes.Buffer
		cmd := newBypassCommand(connect)
		cmd.SetArgs(append(args, always...))
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SilenceUsage = true
		err := cmd.ExecuteContext(context.Background())
		return out.String(), err
	}
}

func TestBypassBeginsAndEnds(t *testing.T) {
	dir, c := t.TempDir(), revocable()
	resource := schema.GroupVersionResource{Group: "policy.tacit.mesh", Version: "v1alpha1", Resource: bypass.Resource}
	c.Dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{resource: "BypassList"})
	t.Setenv("SUDO_USER", "alice")
	listed := map[string]bool{}
	for name, call := range map[string]func(...string) (string, error){
		"in a cluster":      bypassCalls(t, func() (*cluster.Cluster, error) { return c, nil }),
		"without a cluster": bypassCalls(t, nil, "--from="+dir),
	} {
		t.Run(name, func(t *testing.T) {
			must := func(args ...string) string {
				t.Helper()
				out, err := call(args...)
				if err != nil {
					t.Fatalf("%v: %v", args, err)
				}
				return out
			}
			if out := must("list"); !strings.Contains(out, "Nothing is or was bypassed") {
				t.Errorf("at first: %s", out)
			}
			must("shop/web", "--for=2h", "--policy-only", "--reason=incident 12")
			if out, err := call("-n=shop", "--reason=of what?"); err == nil { // as with a variable that is not set
				t.Errorf("without an argument, by -n alone: %s", out)
			}
			must("shop", "--for=1h", "--reason=all of it")
			must("-n=shop", "cart", "--for=1h", "--reason=one of it")
			must("end", "-n=shop", "cart")
			read := func() map[string]bypass.Bypass {
				t.Helper()
				var answer struct{ Bypasses []bypass.Bypass }
				if err := json.Unmarshal([]byte(must("list", "-o=json")), &answer); err != nil {
					t.Fatal(err)
				}
				byPod := map[string]bypass.Bypass{}
				for _, b := range answer.Bypasses {
					byPod[b.Spec.Pod] = b
				}
				return byPod
			}
			now := time.Now()
			if web := read()["web"]; web.Namespace != "shop" || !web.Spec.PolicyOnly || web.Spec.By != "alice" || web.Spec.Reason != "incident 12" ||
				web.Spec.Until.Sub(web.Spec.Since.Time) != 2*time.Hour || web.Phase(now, bypass.DefaultMax) != bypass.Lenient {
				t.Errorf("recorded: %+v", web)
			}
			if out := must("list"); !strings.Contains(out, "policies bypassed, ends in 1h59m") || !strings.Contains(out, "incident 12") || !strings.Contains(out, "alice") {
				t.Errorf("list:\n%s", out)
			}
			if out := must("list", "-n=other"); !strings.Contains(out, "Nothing is or was bypassed") {
				t.Errorf("list of another namespace:\n%s", out)
			}
			must("end", "shop") // and not the pod's own
			all := read()
			if all[""].Spec.Until.After(time.Now()) || all[""].Spec.EndedBy != "alice" || !all["web"].Spec.Until.After(now) {
				t.Errorf("ended: %+v", all)
			}
			must("end", "shop/"+all["web"].Name)
			if out, err := call("end", "shop/web"); err == nil || !strings.Contains(err.Error(), "see tacit bypass list") {
				t.Errorf("ended twice: %s, %v", out, err)
			}
			if out := must("list"); strings.Count(out, "by alice") != 3 {
				t.Errorf("list once they are ended:\n%s", out)
			}
		})
	}
	// Whoever may bypass in one namespace alone can list and end there.
	for _, action := range c.Dynamic.(*dynamicfake.FakeDynamicClient).Actions() {
		if action.GetVerb() == "list" {
			listed[action.GetNamespace()] = true
		}
	}
	if want := map[string]bool{"": true, "shop": true, "other": true}; !maps.Equal(listed, want) {
		t.Errorf("lists of the namespaces %v, want %v", listed, want)
	}
	// What was written for tacitd is what tacitd reads.
	if objects, errs := files.Read(dir); len(errs) > 0 || len(objects.Bypasses) != 3 || objects.Bypasses[0].Namespace != "shop" {
		t.Errorf("tacitd reads %+v, %v", objects.Bypasses, errs)
	}
}

func TestBypassesAreRefused(t *testing.T) {
	call := bypassCalls(t, nil, "--from="+t.TempDir())
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no reason":    {[]string{"shop"}, "say why"},
		"no time":      {[]string{"shop", "--for=0s", "--reason=x"}, "want 1s or more"},
		"no name":      {[]string{"shop/", "--reason=x"}, "want NAMESPACE/POD"},
		"a path":       {[]string{"../shop", "--reason=x"}, "want NAMESPACE/POD"},
		"nobody":       {nil, "accepts 1 arg"},
		"both worlds":  {[]string{"list", "--context=prod"}, "give one or the other"},
		"not in force": {[]string{"end", "shop"}, "no bypass of that name"},
	} {
		if out, err := call(test.args...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %s, %v, want %q", name, out, err, test.want)
		}
	}
}
