package proxy

import (
	"github.com/tacit-mesh/tacit/proxy/http"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

// clientCert is the header in which Envoy, and what is built for it, tells who
// the caller is.
const clientCert = "X-Forwarded-Client-Cert"

// identified is the header with the caller's identity, as By and URI of
// X-Forwarded-Client-Cert. What the caller says there itself is taken off, also
// with "_" for "-", which some servers take for the same; without an identity
// nothing takes its place.
func identified(fields []http.Field, caller, local model.Identity) []http.Field {
	out := make([]http.Field, 0, len(fields)+1)
	for _, f := range fields {
		if !policy.SameName(f.Name, clientCert) {
			out = append(out, f)
		}
	}
	if caller.IsZero() {
		return out
	}
	return append(out, http.Field{Name: clientCert, Value: "By=" + local.String() + ";URI=" + caller.String()})
}
