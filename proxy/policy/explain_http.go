package policy

import (
	"fmt"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// describeRequest puts the values of an attribute of HTTP into words.
func (e *evaluation) describeRequest(step *Step, h *model.HTTPMatch, a attribute) {
	r := e.request.HTTP
	if r == nil {
		r = &HTTPRequest{}
	}
	switch a {
	case methods:
		step.Wanted, step.Actual = oneOf(h.Methods), r.Method
	case notMethods:
		step.Wanted, step.Actual = noneOf(h.NotMethods), r.Method
	case paths:
		step.Wanted, step.Actual = oneOf(h.Paths), r.Path
	case notPaths:
		step.Wanted, step.Actual = noneOf(h.NotPaths), r.Path
	case hosts:
		step.Wanted, step.Actual = oneOf(h.Hosts), r.Host
	case notHosts:
		step.Wanted, step.Actual = noneOf(h.NotHosts), r.Host
	case requestPrincipals:
		step.Wanted, step.Actual = oneOf(h.RequestPrincipals), r.Claims.Principal()
	case notRequestPrincipals:
		step.Wanted, step.Actual = noneOf(h.NotRequestPrincipals), r.Claims.Principal()
	case audiences:
		step.Wanted, step.Actual = oneOf(h.Audiences), claimText(r.Claims.Find("aud"))
	case notAudiences:
		step.Wanted, step.Actual = noneOf(h.NotAudiences), claimText(r.Claims.Find("aud"))
	case presenters:
		step.Wanted, step.Actual = oneOf(h.Presenters), claimText(r.Claims.Find("azp"))
	case notPresenters:
		step.Wanted, step.Actual = noneOf(h.NotPresenters), claimText(r.Claims.Find("azp"))
	case headers:
		step.Wanted = oneOf(inWords(h.Headers, func(k model.HeaderMatch) string { return k.Name + ": " + oneOf(k.Values) }))
	case notHeaders:
		step.Wanted = noneOf(inWords(h.NotHeaders, func(k model.HeaderMatch) string { return k.Name + ": " + oneOf(k.Values) }))
	case claims:
		step.Wanted = oneOf(inWords(h.Claims, func(k model.ClaimMatch) string { return strings.Join(k.Path, ".") + ": " + oneOf(k.Values) }))
	case notClaims:
		step.Wanted = noneOf(inWords(h.NotClaims, func(k model.ClaimMatch) string { return strings.Join(k.Path, ".") + ": " + oneOf(k.Values) }))
	case remoteIPs:
		step.Wanted, step.Actual = oneOf(h.RemoteIPs), known(e.remote(&h.Forwarding))
	case notRemoteIPs:
		step.Wanted, step.Actual = noneOf(h.NotRemoteIPs), known(e.remote(&h.Forwarding))
	case serverNames:
		step.Wanted, step.Actual = oneOf(h.ServerNames), e.request.ServerName
	case notServerNames:
		step.Wanted, step.Actual = noneOf(h.NotServerNames), e.request.ServerName
	default:
	}
	switch {
	case a == remoteIPs || a == notRemoteIPs:
	case e.request.HTTP == nil && a < serverNames:
		step.Actual = "no request of HTTP"
	case a == headers || a == notHeaders || a == claims || a == notClaims:
		step.Actual = "others" // values of headers and claims may be secrets
	case step.Actual == "":
		step.Actual = "none"
	default:
		step.Actual = fmt.Sprintf("%q", step.Actual)
	}
}

func inWords[T any](keys []T, name func(T) string) (out []string) {
	for _, k := range keys {
		out = append(out, name(k))
	}
	return out
}
