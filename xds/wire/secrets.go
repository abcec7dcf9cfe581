package wire

import (
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/api/security"
	"github.com/tacit-mesh/tacit/xds/api/tacit"
)

// Redacted stands where something was that nobody else is to see.
const Redacted = "[redacted]"

// WithoutSecrets is the resource of a policy without what callers and providers
// may prove themselves by: the values that headers are compared with, and the
// headers that a provider is sent besides. All else stays, also what this version
// does not know, except an extension of HTTP that holds something else: nobody
// can tell what is in it. It fails on what is no policy.
func WithoutSecrets(resource *anypb.Any) (*anypb.Any, error) {
	policy := &security.Authorization{}
	if err := resource.UnmarshalTo(policy); err != nil {
		return nil, fmt.Errorf("take secrets out of a policy: %w", err)
	}
	redactRules(policy.GetRules())
	for _, e := range policy.GetExtensions() {
		if e.GetName() == httpExtension && redactAction(e) != nil {
			e.Config = nil
		}
	}
	return pack(policy)
}

func redactAction(e *security.Extension) (err error) {
	action := &tacit.HTTPPolicyExtension{}
	if err := e.GetConfig().UnmarshalTo(action); err != nil {
		return err
	}
	sent := action.GetCustom().GetIncludeAdditionalHeaders()
	for name := range sent {
		sent[name] = Redacted
	}
	for _, limit := range action.GetRateLimit().GetLimits() {
		redactRules(limit.GetRules())
	}
	e.Config, err = pack(action)
	return err
}

func redactRules(rules []*security.Rule) {
	for _, rule := range rules {
		for _, clause := range rule.GetClauses() {
			for _, match := range clause.GetMatches() {
				for _, e := range match.GetExtensions() {
					if e.GetName() == httpExtension && redactMatch(e) != nil {
						e.Config = nil
					}
				}
			}
		}
	}
}

func redactMatch(e *security.Extension) (err error) {
	match := &tacit.HTTPMatchExtension{}
	if err := e.GetConfig().UnmarshalTo(match); err != nil {
		return err
	}
	for _, headers := range [][]*tacit.LabelMatch{match.GetHeaders(), match.GetNotHeaders()} {
		for _, h := range headers {
			for _, value := range h.GetValues() {
				switch kind := value.GetMatchType().(type) {
				case *security.StringMatch_Exact:
					kind.Exact = Redacted
				case *security.StringMatch_Prefix:
					kind.Prefix = Redacted
				case *security.StringMatch_Suffix:
					kind.Suffix = Redacted
				}
			}
		}
	}
	e.Config, err = pack(match)
	return err
}
