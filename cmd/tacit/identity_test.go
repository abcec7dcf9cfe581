//go:build !inpod

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/source/files"
)

const webIdentity = "spiffe://cluster.local/ns/shop/sa/web"

// revocable is a cluster whose API server calls whoever asks "alice".
func revocable() *cluster.Cluster {
	client := fake.NewClientset()
	client.PrependReactor("create", "selfsubjectreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &authv1.SelfSubjectReview{Status: authv1.SelfSubjectReviewStatus{UserInfo: authv1.UserInfo{Username: "alice"}}}, nil
	})
	resource := schema.GroupVersionResource{Group: "policy.tacit.mesh", Version: "v1alpha1", Resource: "revokedidentities"}
	return &cluster.Cluster{
		Namespace: "tacit-system", Client: client,
		Dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{resource: "RevokedIdentityList"}),
	}
}

// identityCalls runs "tacit identity" with arguments that always are the same
// at the end.
func identityCalls(t *testing.T, connect func() (*cluster.Cluster, error), always ...string) func(args ...string) (string, error) {
	return func(args ...string) (string, error) {
		t.Helper()
		var out bytes.Buffer
		cmd := newIdentityCommand(connect)
		cmd.SetArgs(append(args, always...))
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SilenceUsage = true
		err := cmd.ExecuteContext(context.Background())
		return out.String(), err
	}
}

func TestIdentityIsRevokedAndRestored(t *testing.T) {
	dir, c := t.TempDir(), revocable()
	t.Setenv("SUDO_USER", "alice")
	for name, call := range map[string]func(...string) (string, error){
		"in a cluster":      identityCalls(t, func() (*cluster.Cluster, error) { return c, nil }),
		"without a cluster": identityCalls(t, nil, "--from="+dir),
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
			if out := must("list"); !strings.Contains(out, "No identity is or was revoked") {
				t.Errorf("at first: %s", out)
			}
			if out, err := call("restore", webIdentity); err == nil {
				t.Errorf("restored what is not revoked: %s", out)
			}
			before := time.Now().Truncate(time.Second)
			must("revoke", webIdentity, "--for=2h", "--reason=key leaked")
			var answer struct {
				RevokedIdentities []*kinds.RevokedIdentity `json:"revokedIdentities"`
			}
			read := func() kinds.RevokedIdentitySpec {
				t.Helper()
				answer.RevokedIdentities = nil
				if err := json.Unmarshal([]byte(must("list", "-o=json")), &answer); err != nil || len(answer.RevokedIdentities) != 1 {
					t.Fatalf("list: %v, %v", answer, err)
				}
				return answer.RevokedIdentities[0].Spec
			}
			r := read()
			if r.Identity != webIdentity || r.By != "alice" || r.Reason != "key leaked" || r.Since.Time.Before(before) || r.Until.Sub(r.Since.Time) != 2*time.Hour {
				t.Errorf("recorded: %+v", r)
			}
			if out := must("list"); !strings.Contains(out, "revoked, ends in 1h59m") || !strings.Contains(out, "key leaked") || !strings.Contains(out, "alice") {
				t.Errorf("list:\n%s", out)
			}
			must("restore", webIdentity)
			if r := read(); r.Until.After(time.Now()) || r.RestoredBy != "alice" || r.By != "alice" {
				t.Errorf("restored: %+v", r)
			}
			if out := must("list"); !strings.Contains(out, "by alice") || !strings.Contains(out, "restored") {
				t.Errorf("list once it is restored:\n%s", out)
			}
		})
	}
	// What was written for tacitd is what tacitd reads.
	if objects, errs := files.Read(dir); len(errs) > 0 || len(objects.RevokedIdentities) != 1 || objects.RevokedIdentities[0].Namespace != "tacit-system" {
		t.Errorf("tacitd reads %+v, %v", objects.RevokedIdentities, errs)
	}
}

func TestRevocationsAreRefused(t *testing.T) {
	call := identityCalls(t, nil, "--from="+t.TempDir())
	for _, test := range []struct{ name, args, want string }{
		{"no identity", "revoke spiffe://cluster.local/web --reason=x", "want spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"},
		{"no reason", "revoke " + webIdentity, "say why"},
		{"no time", "revoke " + webIdentity + " --reason=x --for=0s", "want more than 0"},
		{"both worlds", "list --context=prod", "give one or the other"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if out, err := call(strings.Fields(test.args)...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s, %v; want an error with %q", out, err, test.want)
			}
		})
	}
}
