package person

import (
	"context"
	"strings"
	"testing"
	"time"

	authorization "k8s.io/api/authorization/v1"
	certificates "k8s.io/api/certificates/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/sight/page"
)

// cluster writes into requests who makes them, as the API server does, and lets
// alice see team-a, and root everything.
func cluster(user string) (client *fake.Clientset, reviews *int) {
	client, reviews = fake.NewClientset(), new(int)
	client.PrependReactor("create", "certificatesigningrequests", func(action kubetesting.Action) (bool, runtime.Object, error) {
		request := action.(kubetesting.CreateAction).GetObject().(*certificates.CertificateSigningRequest)
		request.Spec.Username, request.Spec.Groups = user, []string{"staff"}
		request.CreationTimestamp = meta.Now()
		return false, nil, nil
	})
	client.PrependReactor("create", "subjectaccessreviews", func(action kubetesting.Action) (bool, runtime.Object, error) {
		*reviews++
		review := action.(kubetesting.CreateAction).GetObject().(*authorization.SubjectAccessReview)
		what := review.Spec.ResourceAttributes
		isStaff := len(review.Spec.Groups) == 1 && review.Spec.Groups[0] == "staff"
		review.Status.Allowed = isStaff && what.Verb == "list" && what.Resource == "pods" &&
			(review.Spec.User == "root" || review.Spec.User == "alice" && what.Namespace == "team-a")
		return true, review, nil
	})
	return client, reviews
}

func prove(t *testing.T, client *fake.Clientset, d *Door) (page.Proof, func(context.Context)) {
	t.Helper()
	challenge, err := d.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	p, done, err := Prove(t.Context(), client, challenge)
	if err != nil {
		t.Fatal(err)
	}
	return p, done
}

func TestPeopleSeeWhatTheyMay(t *testing.T) {
	for user, sees := range map[string]map[string]bool{
		"alice": {"": false, "team-a": true, "team-b": false}, "root": {"": true, "team-a": true, "team-b": true}, "mallory": {"": false, "team-a": false},
	} {
		client, reviews := cluster(user)
		d := &Door{Client: client}
		p, done := prove(t, client, d)
		v, err := d.Open(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			for namespace, want := range sees {
				if got := v.Sees(t.Context(), namespace); got != want {
					t.Errorf("%s sees %q: %v", user, namespace, got)
				}
			}
		}
		if *reviews > len(sees) {
			t.Errorf("the API server was asked %d times about %d namespaces", *reviews, len(sees))
		}
		done(t.Context())
		if left, err := client.CertificatesV1().CertificateSigningRequests().List(t.Context(), meta.ListOptions{}); err != nil || len(left.Items) != 0 {
			t.Errorf("left in the cluster: %v, %v", left.Items, err)
		}
	}
}

func TestProofsThatProveNothing(t *testing.T) {
	client, _ := cluster("root")
	d := &Door{Client: client}
	other, _ := prove(t, client, d)
	edit := func(change func(*certificates.CertificateSigningRequest)) func(*page.Proof) {
		return func(p *page.Proof) {
			requests := client.CertificatesV1().CertificateSigningRequests()
			r, err := requests.Get(t.Context(), p.Request, meta.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			change(r)
			if _, err := requests.Update(t.Context(), r, meta.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tt := range map[string]struct {
		change func(*page.Proof)
		want   string
	}{
		"a challenge of nobody": {func(p *page.Proof) { p.Challenge = "x" }, "no challenge of ours"},
		"another's request":     {func(p *page.Proof) { p.Request = other.Request }, "signature"},
		"another's signature":   {func(p *page.Proof) { p.Signature = other.Signature }, "signature"},
		"no signature":          {func(p *page.Proof) { p.Signature = nil }, "signature"},
		"a request that is not": {func(p *page.Proof) { p.Request = "tacit-ui-none" }, "not found"},
		"a request of others":   {func(p *page.Proof) { p.Request = "node-csr-x" }, "no request of tacit ui"},
		"a request for another": {edit(func(r *certificates.CertificateSigningRequest) { r.Spec.SignerName = "example.com/signer" }), "for certificates"},
		"an old request": {edit(func(r *certificates.CertificateSigningRequest) {
			r.CreationTimestamp = meta.NewTime(time.Now().Add(-time.Hour))
		}), "old"},
		"a request of nobody":      {edit(func(r *certificates.CertificateSigningRequest) { r.Spec.Username = "" }), "who made it"},
		"a request of other bytes": {edit(func(r *certificates.CertificateSigningRequest) { r.Spec.Request = []byte("x") }), "PEM"},
	} {
		p, _ := prove(t, client, d)
		tt.change(&p)
		if _, err := d.Open(t.Context(), p); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, _ := prove(t, client, d)
	if _, err := d.Open(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(t.Context(), p); err == nil {
		t.Error("a proof is good twice")
	}
	for range maxWaiting {
		_, _ = d.Challenge()
	}
	if _, err := d.Challenge(); err == nil {
		t.Error("challenges are without bound")
	}
}
