package wire

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/api/security"
	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/model"
)

// EncodePolicy makes the resource of a policy, of [AuthorizationType] and
// named by its key. What the model marks as unknown, and values that have no
// form on the wire, are unknown to the receiver as well; an unknown rule or
// clause arrives as one whose only match is unknown, which decides the same.
// It fails on text that is not UTF-8.
func EncodePolicy(p *model.Policy) (*anypb.Any, error) {
	out := &security.Authorization{
		Name:      p.Name,
		Namespace: p.Namespace,
		Scope:     security.Scope(p.Scope),
		Action:    security.Action(p.Action),
		DryRun:    p.DryRun,
	}
	if err := encodePolicyExtensions(p, out); err != nil {
		return nil, fmt.Errorf("encode policy %q: %w", p.Key(), err)
	}
	for _, rule := range p.Rules {
		encoded, err := encodeRule(rule)
		if err != nil {
			return nil, fmt.Errorf("encode policy %q: %w", p.Key(), err)
		}
		out.Rules = append(out.Rules, encoded)
	}
	resource, err := pack(out)
	if err != nil {
		return nil, fmt.Errorf("encode policy %q: %w", p.Key(), err)
	}
	return resource, nil
}

// DecodePolicy reads a resource of [AuthorizationType]. What it cannot
// understand, it marks as unknown at the smallest level that holds it, with
// the field's path.
//
// An error means that the resource is to be rejected: its name is no policy
// key, or the policy's own key is another. If the name is a key, there is a
// policy beside the error: it denies, and stands for what is known by that
// name, which must not go on being more permissive than what replaces it.
func DecodePolicy(name string, resource *anypb.Any) (*model.Policy, error) {
	namespace, base, ok := strings.Cut(name, "/")
	if !ok || namespace == "" || base == "" || strings.Contains(base, "/") {
		return nil, fmt.Errorf("policy %q: the resource's name is not NAMESPACE/NAME", name)
	}
	if !short(name) {
		return nil, fmt.Errorf("policy %.64q: a name of more than %d bytes", name, maxText)
	}
	var a security.Authorization
	if err := resource.UnmarshalTo(&a); err != nil {
		return denial(namespace, base, model.ScopeGlobal, fmt.Sprintf("not readable: %v", err)), nil
	}
	out := decodeAuthorization(&a)
	if a.GetNamespace() != namespace || a.GetName() != base {
		err := fmt.Errorf("policy %q: namespace %q and name %q are not the resource's name", name, a.GetNamespace(), a.GetName())
		return denial(namespace, base, out.Scope, err.Error()), err
	}
	return out, nil
}

func encodePolicyExtensions(p *model.Policy, out *security.Authorization) error {
	add := func(name string, ext proto.Message) error {
		config, err := pack(ext)
		out.Extensions = append(out.Extensions, &security.Extension{Name: name, Config: config})
		return err
	}
	if p.Unknown != "" || len(p.Ports) > 0 {
		own := &tacit.PolicyExtension{Unknown: p.Unknown, Ports: encodeEach(p.Ports, encodeMatchPort)}
		if err := add(policyExtension, own); err != nil {
			return err
		}
	}
	ext, err := encodeHTTPPolicy(p)
	if ext == nil || err != nil {
		return err
	}
	out.Action = security.Action_DENY
	return add(httpExtension, ext)
}

func denial(namespace, name string, scope model.PolicyScope, reason string) *model.Policy {
	return &model.Policy{Namespace: namespace, Name: name, Scope: scope, Action: model.ActionDeny, Unknown: reason}
}

func decodeAuthorization(a *security.Authorization) *model.Policy {
	out := &model.Policy{
		Name:      a.GetName(),
		Namespace: a.GetNamespace(),
		Scope:     model.PolicyScope(a.GetScope()),
		Action:    model.Action(a.GetAction()),
		DryRun:    a.GetDryRun(),
	}
	unknown := reasons{ownUnknown(a.ProtoReflect(), "authorization")}
	if !known(a.GetScope()) {
		unknown.add("scope: unknown number %d", a.GetScope())
		out.Scope = model.ScopeGlobal
	}
	if !known(a.GetAction()) {
		unknown.add("action: unknown number %d", a.GetAction())
		out.Action = model.ActionDeny
	}
	unknown = append(unknown, decodePolicyExtensions(a.GetExtensions(), out)...)
	out.Unknown = unknown.first()
	for i, rule := range a.GetRules() {
		out.Rules = append(out.Rules, decodeRule(rule, fmt.Sprintf("rules[%d]", i)))
	}
	return out
}

func decodePolicyExtensions(list []*security.Extension, out *model.Policy) reasons {
	var unknown reasons
	seen := map[string]bool{}
	for i, e := range list {
		path, name := fmt.Sprintf("extensions[%d]", i), e.GetName()
		unknown = append(unknown, anyUnknown(e.ProtoReflect(), path))
		switch {
		case seen[name]:
			unknown.add("%s: %s is given twice", path, name)
		case name == policyExtension:
			var ext tacit.PolicyExtension
			if err := e.GetConfig().UnmarshalTo(&ext); err != nil {
				unknown.add("%s.config: %v", path, err)
			}
			unknown = append(unknown, anyUnknown(ext.ProtoReflect(), path+".config"), ext.GetUnknown())
			var err error
			if out.Ports, err = decodeEach("ports", ext.GetPorts(), decodeMatchPort); err != nil {
				unknown.add("%s.config.%v", path, err)
			}
		case name == httpExtension:
			unknown = append(unknown, decodeHTTPPolicy(e, path, out)...)
		default:
			unknown.add("%s: unknown extension %q", path, name)
		}
		seen[name] = true
	}
	return unknown
}

func encodeRule(r model.Rule) (*security.Rule, error) {
	clauses := r.Clauses
	if r.Unknown != "" {
		clauses = []model.Clause{{Unknown: r.Unknown}}
	}
	out := &security.Rule{}
	for _, clause := range clauses {
		matches := clause.Matches
		if clause.Unknown != "" {
			matches = []model.Match{{Unknown: clause.Unknown}}
		}
		encoded := &security.Clause{}
		for _, match := range matches {
			m, err := encodeMatch(&match)
			if err != nil {
				return nil, err
			}
			encoded.Matches = append(encoded.Matches, m)
		}
		out.Clauses = append(out.Clauses, encoded)
	}
	return out, nil
}

func decodeRule(r *security.Rule, path string) model.Rule {
	out := model.Rule{Unknown: ownUnknown(r.ProtoReflect(), path)}
	for i, clause := range r.GetClauses() {
		at := fmt.Sprintf("%s.clauses[%d]", path, i)
		decoded := model.Clause{Unknown: ownUnknown(clause.ProtoReflect(), at)}
		for j, match := range clause.GetMatches() {
			decoded.Matches = append(decoded.Matches, decodeMatch(match, fmt.Sprintf("%s.matches[%d]", at, j)))
		}
		out.Clauses = append(out.Clauses, decoded)
	}
	return out
}

// reasons collects why something is unknown; empty ones do not count.
type reasons []string

func (r *reasons) add(format string, args ...any) { *r = append(*r, fmt.Sprintf(format, args...)) }

func (r reasons) first() string {
	for _, reason := range r {
		if reason != "" {
			return reason
		}
	}
	return ""
}
