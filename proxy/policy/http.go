package policy

import (
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// HTTPRequest holds the facts of one request of HTTP.
type HTTPRequest struct {
	Method string
	Path   string // as NormalizePath returns it, without the query
	Host   string // Host or :authority as sent, with the port if there is one
	// Headers are all but the pseudo-headers, in any order; a name may be
	// there several times.
	Headers []HeaderField
	// Claims are those of a verified token; nil without one.
	Claims *Claims
}

// HeaderField is one line of a header.
type HeaderField struct{ Name, Value string }

// Claims are what a verified token says.
type Claims struct {
	values map[string]any
}

// spaceDelimited are the claims that always are lists separated by blanks.
var spaceDelimited = []string{"scope", "permission"}

// NewClaims takes the claims of a token as encoding/json decodes them, which it
// keeps and changes: scope, permission and the claims named, "a.b" for a nested
// one, become lists of what blanks separate in them.
func NewClaims(values map[string]any, delimited []string) *Claims {
	for _, name := range spaceDelimited {
		split(values, []string{name})
	}
	for _, name := range delimited {
		split(values, strings.Split(name, "."))
	}
	return &Claims{values}
}

func split(values map[string]any, path []string) {
	for ; len(path) > 1; path = path[1:] {
		values, _ = values[path[0]].(map[string]any)
	}
	text, ok := values[path[0]].(string)
	if !ok {
		return
	}
	var list []any
	for _, word := range strings.Fields(text) {
		list = append(list, word)
	}
	values[path[0]] = list
}

// Find returns the claim at a path; nil if there is none.
func (c *Claims) Find(path ...string) any {
	if c == nil || len(path) == 0 {
		return nil
	}
	values := c.values
	for ; len(path) > 1; path = path[1:] {
		values, _ = values[path[0]].(map[string]any)
	}
	return values[path[0]]
}

// text is a claim that is a string; empty if it is anything else.
func (c *Claims) text(name string) string {
	text, _ := c.Find(name).(string)
	return text
}

// Principal is "ISSUER/SUBJECT"; empty unless the token has both.
func (c *Claims) Principal() string {
	issuer, subject := c.text("iss"), c.text("sub")
	if issuer == "" || subject == "" {
		return ""
	}
	return issuer + "/" + subject
}

// judgeHTTP judges by a request, or, for a connection of which the requests
// are yet to come, whether one is thinkable that is allowed.
func (e *evaluation) judgeHTTP(h *model.HTTPMatch, a attribute, deny bool) verdict {
	if a == serverNames || a == notServerNames {
		return e.judgeServerName(h, a == serverNames, deny)
	}
	if a == remoteIPs || a == notRemoteIPs {
		return e.judgeRemote(h, a == remoteIPs, deny)
	}
	switch {
	case !hasHTTP(h, a):
		return absent
	case e.anyRequest && deny:
		return fails
	case e.anyRequest:
		return fits
	case e.request.HTTP == nil:
		return unproven
	}
	r := e.request.HTTP
	switch a {
	case methods:
		return list(h.Methods, anyMatches(h.Methods, r.Method), true)
	case notMethods:
		return list(h.NotMethods, anyMatches(h.NotMethods, r.Method), false)
	case paths:
		return list(h.Paths, anyMatches(h.Paths, r.Path), true)
	case notPaths:
		return list(h.NotPaths, anyMatches(h.NotPaths, r.Path), false)
	case hosts:
		return list(h.Hosts, hasHost(h.Hosts, r.Host, deny), true)
	case notHosts:
		return list(h.NotHosts, hasHost(h.NotHosts, r.Host, !deny), false)
	case requestPrincipals:
		return list(h.RequestPrincipals, r.Claims.hasPrincipal(h.RequestPrincipals), true)
	case notRequestPrincipals:
		return list(h.NotRequestPrincipals, r.Claims.hasPrincipal(h.NotRequestPrincipals), false)
	case audiences:
		return claimed(r.Claims.Find("aud"), h.Audiences, true)
	case notAudiences:
		return claimed(r.Claims.Find("aud"), h.NotAudiences, false)
	case presenters:
		return claimed(r.Claims.Find("azp"), h.Presenters, true)
	case notPresenters:
		return claimed(r.Claims.Find("azp"), h.NotPresenters, false)
	case headers:
		return r.headers(h.Headers, true, deny)
	case notHeaders:
		return r.headers(h.NotHeaders, false, deny)
	case claims:
		return r.claims(h.Claims, true)
	case notClaims:
		return r.claims(h.NotClaims, false)
	default:
		return absent
	}
}

// hasHTTP reports whether the match has the attribute.
func hasHTTP(h *model.HTTPMatch, a attribute) bool {
	switch a {
	case methods:
		return len(h.Methods) > 0
	case notMethods:
		return len(h.NotMethods) > 0
	case paths:
		return len(h.Paths) > 0
	case notPaths:
		return len(h.NotPaths) > 0
	case hosts:
		return len(h.Hosts) > 0
	case notHosts:
		return len(h.NotHosts) > 0
	case requestPrincipals:
		return len(h.RequestPrincipals) > 0
	case notRequestPrincipals:
		return len(h.NotRequestPrincipals) > 0
	case audiences:
		return len(h.Audiences) > 0
	case notAudiences:
		return len(h.NotAudiences) > 0
	case presenters:
		return len(h.Presenters) > 0
	case notPresenters:
		return len(h.NotPresenters) > 0
	case headers:
		return len(h.Headers) > 0
	case notHeaders:
		return len(h.NotHeaders) > 0
	case claims:
		return len(h.Claims) > 0
	case notClaims:
		return len(h.NotClaims) > 0
	case remoteIPs:
		return len(h.RemoteIPs) > 0
	case notRemoteIPs:
		return len(h.NotRemoteIPs) > 0
	case serverNames:
		return len(h.ServerNames) > 0
	case notServerNames:
		return len(h.NotServerNames) > 0
	default:
		return false
	}
}

func (e *evaluation) judgeServerName(h *model.HTTPMatch, wanted, deny bool) verdict {
	values := h.ServerNames
	if !wanted {
		values = h.NotServerNames
	}
	switch name := e.request.ServerName; {
	case len(values) == 0:
		return absent
	case name != "":
		return list(values, hasHost(values, name, deny == wanted), wanted)
	case e.anyRequest && deny:
		return fails
	case e.anyRequest:
		return fits
	}
	return unproven
}

// hasHost compares without regard to case, as Istio does, the host as it was
// sent. Widely, so that a DENY policy is not got round by a port or a final
// dot, it also compares the host without these.
func hasHost(values []model.StringMatch, host string, widely bool) bool {
	bare := bareHost(host)
	for _, v := range values {
		if v.MatchesFold(host) || widely && v.MatchesFold(bare) {
			return true
		}
	}
	return false
}

// bareHost is a host without its port and its final dot.
func bareHost(host string) string {
	if colon := strings.LastIndexByte(host, ':'); colon > strings.LastIndexByte(host, ']') {
		host = host[:colon]
	}
	return strings.TrimSuffix(host, ".")
}

func (c *Claims) hasPrincipal(values []model.StringMatch) bool {
	if c == nil {
		return false
	}
	issuer, subject := c.text("iss"), c.text("sub")
	if issuer == "" || subject == "" {
		return false
	}
	parts := [...]string{issuer, "/", subject}
	for _, v := range values {
		if matchesJoined(parts[:], v) {
			return true
		}
	}
	return false
}

func (r *HTTPRequest) headers(keys []model.HeaderMatch, wanted, deny bool) verdict {
	for i := range keys {
		if r.hasHeader(&keys[i], deny == wanted) != wanted {
			return fails
		}
	}
	return fits
}

// hasHeader compares a header that comes several times on the closed side:
// widely, one of its lines is enough, or all of them joined by commas;
// otherwise every line must have one of the values.
func (r *HTTPRequest) hasHeader(k *model.HeaderMatch, widely bool) bool {
	found := 0
	for i := range r.Headers {
		if !model.EqualFold(r.Headers[i].Name, k.Name) {
			continue
		}
		found++
		if hit := anyMatches(k.Values, r.Headers[i].Value); hit == widely {
			return widely
		}
	}
	if widely {
		return found > 1 && r.hasJoined(k)
	}
	return found > 0
}

// hasJoined is the one comparison that has to build a value, so it is left to
// values that hold a comma.
func (r *HTTPRequest) hasJoined(k *model.HeaderMatch) bool {
	joined := ""
	for _, v := range k.Values {
		if !strings.Contains(v.Value, ",") {
			continue
		}
		if joined == "" {
			var lines []string
			for _, f := range r.Headers {
				if model.EqualFold(f.Name, k.Name) {
					lines = append(lines, f.Value)
				}
			}
			joined = strings.Join(lines, ",")
		}
		if v.Matches(joined) {
			return true
		}
	}
	return false
}

func (r *HTTPRequest) claims(keys []model.ClaimMatch, wanted bool) verdict {
	result := fits
	for i := range keys {
		switch claimed(r.Claims.Find(keys[i].Path...), keys[i].Values, wanted) {
		case fails:
			return fails
		case unproven:
			result = unproven
		case fits, absent:
		}
	}
	return result
}

// claimed compares a claim that is text or a list of texts. What a claim of
// another type amounts to is not known.
func claimed(claim any, values []model.StringMatch, wanted bool) verdict {
	if len(values) == 0 {
		return absent
	}
	hit, strange := false, false
	switch v := claim.(type) {
	case nil:
	case string:
		hit = anyMatches(values, v)
	case []any:
		for _, element := range v {
			text, ok := element.(string)
			hit = hit || ok && anyMatches(values, text)
			strange = strange || !ok
		}
	default:
		strange = true
	}
	if strange && !hit {
		return unproven
	}
	return list(values, hit, wanted)
}
