package jwt

import (
	"net/url"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

type placeKind uint8

const (
	inHeader placeKind = iota
	inParameter
	inCookie
)

// place is where tokens are looked for.
type place struct {
	kind placeKind
	name string
}

// bearer is the prefix in the header Authorization; RFC 9110 has it compared
// without regard to case.
const bearer = "Bearer "

// present adds the tokens that the rule looks at.
func present(seen []presented, rule *model.JWTRule, key string, headers []policy.HeaderField, query string) []presented {
	found := func(p place, token string) {
		for i := range seen {
			if seen[i].place == p && seen[i].token == token {
				seen[i].rules, seen[i].policies = append(seen[i].rules, rule), append(seen[i].policies, key)
				return
			}
		}
		seen = append(seen, presented{place: p, token: token, rules: []*model.JWTRule{rule}, policies: []string{key}})
	}
	from := rule
	if len(rule.FromHeaders)+len(rule.FromParams)+len(rule.FromCookies) == 0 {
		from = defaults
	}
	for _, h := range from.FromHeaders {
		for _, token := range headerTokens(headers, h) {
			found(place{inHeader, strings.ToLower(h.Name)}, token)
		}
	}
	for _, name := range from.FromParams {
		for token := range parameters(query, name) {
			found(place{inParameter, name}, token)
		}
	}
	for _, name := range from.FromCookies {
		for _, token := range cookies(headers, name) {
			found(place{inCookie, name}, token)
		}
	}
	return seen
}

var defaults = &model.JWTRule{
	FromHeaders: []model.JWTHeader{{Name: "Authorization", Prefix: bearer}},
	FromParams:  []string{"access_token"},
}

// headerTokens: a line without the prefix has no token.
func headerTokens(headers []policy.HeaderField, h model.JWTHeader) (out []string) {
	for i := range headers {
		value := headers[i].Value
		if !model.EqualFold(headers[i].Name, h.Name) || value == "" || len(value) < len(h.Prefix) {
			continue
		}
		prefix := value[:len(h.Prefix)]
		if prefix == h.Prefix || h.Prefix == bearer && model.EqualFold(prefix, bearer) {
			out = append(out, strings.TrimSpace(value[len(h.Prefix):]))
		}
	}
	return out
}

// parameters yields the values of a parameter that are not empty.
func parameters(query, name string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for pair := range strings.SplitSeq(query, "&") {
			key, value, _ := strings.Cut(pair, "=")
			if !isParameter(key, name) {
				continue
			}
			if decoded, err := url.QueryUnescape(value); err == nil {
				value = decoded
			}
			if value != "" && !yield(value) {
				return
			}
		}
	}
}

func isParameter(key, name string) bool {
	decoded, err := url.QueryUnescape(key)
	return key == name || err == nil && decoded == name
}

func cookies(headers []policy.HeaderField, name string) (out []string) {
	for i := range headers {
		if !model.EqualFold(headers[i].Name, "Cookie") {
			continue
		}
		for pair := range strings.SplitSeq(headers[i].Value, ";") {
			key, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
			if value = strings.Trim(value, `"`); key == name && value != "" {
				out = append(out, value)
			}
		}
	}
	return out
}

// change is how a request is to be forwarded.
type change struct {
	headers, parameters, cookies []string // to remove
	set                          []policy.HeaderField
}

// protect removes headers that only we may set, from whoever poses as us.
func (c *change) protect(rule *model.JWTRule) {
	if rule.PayloadHeader != "" {
		c.headers = append(c.headers, rule.PayloadHeader)
	}
	for _, h := range rule.ClaimHeaders {
		c.headers = append(c.headers, h.Header)
	}
}

func (c *change) add(t *presented, accepted *token) {
	if !t.rule.Forward {
		switch t.place.kind {
		case inHeader:
			c.headers = append(c.headers, t.place.name)
		case inParameter:
			c.parameters = append(c.parameters, t.place.name)
		case inCookie:
			c.cookies = append(c.cookies, t.place.name)
		}
	}
	if t.rule.PayloadHeader != "" {
		c.put(t.rule.PayloadHeader, accepted.payload)
	}
	for _, h := range t.rule.ClaimHeaders {
		if text, ok := claimHeader(accepted.claims.Find(strings.Split(h.Claim, ".")...)); ok {
			c.put(h.Header, text)
		}
	}
}

// put keeps what an earlier token has set.
func (c *change) put(name, value string) {
	if !slices.ContainsFunc(c.set, func(f policy.HeaderField) bool { return model.EqualFold(f.Name, name) }) {
		c.set = append(c.set, policy.HeaderField{Name: name, Value: value})
	}
}

// Changes reports whether Apply changes anything about any request.
func (r *Result) Changes() bool {
	c := &r.change
	return len(c.headers)+len(c.parameters)+len(c.cookies)+len(c.set) > 0
}

// Own are the names of the headers that Apply removes or sets: nobody else may
// say them in what is forwarded.
func (r *Result) Own() []string {
	names := slices.Clone(r.change.headers)
	for _, f := range r.change.set {
		names = append(names, f.Name)
	}
	return names
}

// Apply returns headers and query as they are to be forwarded: without tokens
// that are not to be, and with the claims that are asked for. The arguments
// stay as they are.
func (r *Result) Apply(headers []policy.HeaderField, query string) ([]policy.HeaderField, string) {
	c := &r.change
	if !r.Changes() {
		return headers, query
	}
	out := make([]policy.HeaderField, 0, len(headers)+len(c.set))
	for _, f := range headers {
		switch {
		case slices.ContainsFunc(c.headers, func(name string) bool { return policy.SameName(name, f.Name) }):
		case len(c.cookies) > 0 && model.EqualFold(f.Name, "Cookie"):
			if f.Value = withoutCookies(f.Value, c.cookies); f.Value != "" {
				out = append(out, f)
			}
		default:
			out = append(out, f)
		}
	}
	return append(out, c.set...), withoutParameters(query, c.parameters)
}

func withoutCookies(value string, names []string) string {
	var left []string
	for pair := range strings.SplitSeq(value, ";") {
		pair = strings.TrimSpace(pair)
		if name, _, _ := strings.Cut(pair, "="); !slices.Contains(names, name) {
			left = append(left, pair)
		}
	}
	return strings.Join(left, "; ")
}

func withoutParameters(query string, names []string) string {
	if len(names) == 0 || query == "" {
		return query
	}
	var left []string
	for pair := range strings.SplitSeq(query, "&") {
		key, _, _ := strings.Cut(pair, "=")
		if !slices.ContainsFunc(names, func(name string) bool { return isParameter(key, name) }) {
			left = append(left, pair)
		}
	}
	return strings.Join(left, "&")
}
