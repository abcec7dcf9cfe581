package wire

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tacit-mesh/tacit/xds/api/security"
	"github.com/tacit-mesh/tacit/xds/model"
)

// What may be a password is taken out wherever it is; all else stays, and what is
// left is read as it was.
func TestWithoutSecrets(t *testing.T) {
	const secret = "5ecret of two words"
	rules := func(value string) []model.Rule {
		values := []model.StringMatch{{Kind: model.MatchExact, Value: value}, {Kind: model.MatchPrefix, Value: value}, {Kind: model.MatchSuffix, Value: value}, {Kind: model.MatchPresence}}
		return []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{HTTP: &model.HTTPMatch{
			Methods: []model.StringMatch{{Kind: model.MatchExact, Value: "GET"}},
			Headers: []model.HeaderMatch{{Name: "x-gate", Values: values}}, NotHeaders: []model.HeaderMatch{{Name: "authorization", Values: values}},
		}}}}}}}
	}
	policies := func(value string) []*model.Policy {
		return []*model.Policy{
			{Namespace: "shop", Name: "allow", Action: model.ActionAllow, Rules: rules(value)},
			{Namespace: "shop", Name: "ask", Action: model.ActionCustom, Rules: rules(value), Provider: &model.Provider{
				Name: "judge", Host: "judge.shop", Port: 9000, IncludeAdditionalHeaders: map[string]string{"x-key": value},
			}},
			{Namespace: "shop", Name: "limit", Action: model.ActionLimit, RateLimit: &model.RateLimit{
				Limits: []model.Limit{{Amount: 1, Interval: 1e9, Burst: 1, Rules: rules(value)}},
			}},
		}
	}
	want := policies(Redacted)
	for i, p := range policies(secret) {
		encoded, err := EncodePolicy(p)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(encoded.GetValue(), []byte(secret)) {
			t.Errorf("%s has no secret to begin with", p.Key())
		}
		got, err := WithoutSecrets(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(got.GetValue(), []byte("5ecret")) {
			t.Errorf("%s: a secret stays", p.Key())
		}
		same, err := EncodePolicy(want[i])
		if err != nil {
			t.Fatal(err)
		}
		read, err := DecodePolicy(p.Key(), got)
		wanted, otherErr := DecodePolicy(p.Key(), same)
		if diff := cmp.Diff(wanted, read, cmp.AllowUnexported(model.Policy{})); diff != "" || err != nil || otherErr != nil {
			t.Errorf("%s is another policy now: %v, %v, %s", p.Key(), err, otherErr, diff)
		}
	}
	other, err := pack(&emptypb.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := WithoutSecrets(other); err == nil {
		t.Error("what is no policy passes")
	}
}

// Of an extension that holds something else than it says nothing stays, and all
// else of the policy does.
func TestWithoutSecretsOfUnknownForm(t *testing.T) {
	const secret = "5ecret"
	strange, err := pack(wrapperspb.String(secret))
	if err != nil {
		t.Fatal(err)
	}
	extensions := func(config *anypb.Any) []*security.Extension {
		return []*security.Extension{{Name: httpExtension, Config: config}}
	}
	policy := func(config *anypb.Any) *security.Authorization {
		return &security.Authorization{Name: "strange", Namespace: "shop", Extensions: extensions(config), Rules: []*security.Rule{{
			Clauses: []*security.Clause{{Matches: []*security.Match{{Extensions: extensions(config)}}}},
		}}}
	}
	encoded, err := pack(policy(strange))
	if err != nil {
		t.Fatal(err)
	}
	got, err := WithoutSecrets(encoded)
	if err != nil {
		t.Fatal(err)
	}
	left := &security.Authorization{}
	if err := got.UnmarshalTo(left); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(policy(nil), left, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}
