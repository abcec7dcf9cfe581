package model

import (
	"net/netip"
	"time"
)

// HTTPMatch are the attributes of a match that only a request of HTTP has; the
// last, only a connection that begins with TLS. On any other connection they
// are not known, so that an ALLOW policy does not match by them, and a DENY
// policy matches by the rest.
type HTTPMatch struct {
	Methods, NotMethods                     []StringMatch
	Paths, NotPaths                         []StringMatch // of the normalised path, without its query; MatchTemplate is possible
	Hosts, NotHosts                         []StringMatch // compared without regard to case
	RequestPrincipals, NotRequestPrincipals []StringMatch // of "ISSUER/SUBJECT"
	Audiences, NotAudiences                 []StringMatch
	Presenters, NotPresenters               []StringMatch
	Headers, NotHeaders                     []HeaderMatch
	Claims, NotClaims                       []ClaimMatch
	ServerNames, NotServerNames             []StringMatch // of the ClientHello
	RemoteIPs, NotRemoteIPs                 []netip.Prefix
	Forwarding                              Forwarding // tells the address for RemoteIPs
}

// Forwarding says from whom X-Forwarded-For is believed. From anybody else the
// client is whoever the connection is from; what such a caller sends that is no
// HTTP has none that is known.
type Forwarding struct {
	// Proxies is how many add to the header one after the other, the last
	// of them being the caller: the address of the client is as many from the end.
	Proxies uint32
	Callers []StringMatch // principals
}

// HeaderMatch is one `request.headers[NAME]` condition. The name is compared
// without regard to case.
type HeaderMatch struct {
	Name   string
	Values []StringMatch
}

// ClaimMatch is one `request.auth.claims[A][B]` condition. Path is A, B.
type ClaimMatch struct {
	Path   []string
	Values []StringMatch
}

// PathNormalization is how a path is brought to one form before policies see
// it and before it is forwarded, by the names of Istio's mesh configuration.
type PathNormalization uint8

// The modes. Each includes those before it, the last of them apart.
const (
	// NormalizeBase resolves "." and "..", decodes unreserved characters,
	// and takes "\" for "/" (RFC 3986, section 6).
	NormalizeBase PathNormalization = iota
	// NormalizeMergeSlashes also takes several slashes for one.
	NormalizeMergeSlashes
	// NormalizeDecodeAndMergeSlashes also takes "%2F" and "%5C" for "/".
	NormalizeDecodeAndMergeSlashes
	// NormalizeNone leaves paths alone.
	NormalizeNone
)

// Provider is an external authorization service, which a CUSTOM policy asks.
type Provider struct {
	Name     string
	Protocol ProviderProtocol
	Host     string // a hostname of the mesh or outside, or an address
	Port     uint16
	Timeout  time.Duration // above 0
	// FailOpen allows what the provider cannot be asked about.
	FailOpen bool
	// StatusOnError is the HTTP status for what the provider cannot be asked
	// about; 0 means 403.
	StatusOnError uint16

	// TLS speaks TLS to the provider, and takes a certificate for ServerName
	// (empty: Host) that one of Roots (PEM; empty: the system's) has signed.
	TLS        bool
	ServerName string
	Roots      string

	// What follows is about HTTP, except IncludeBody: see Istio's
	// envoyExtAuthzHttp, whose names these are.
	PathPrefix                string
	IncludeRequestHeaders     []StringMatch
	IncludeAdditionalHeaders  map[string]string
	HeadersToUpstreamOnAllow  []StringMatch
	HeadersToDownstreamOnDeny []StringMatch
	HeadersToDownstreamOnOK   []StringMatch
	// IncludeBody above 0 sends up to so many bytes of the body;
	// AllowPartial, also of a longer one, which is refused otherwise.
	IncludeBody  uint32
	AllowPartial bool
	BodyAsBytes  bool // over gRPC: in raw_body, in the place of a text
}

// ProviderProtocol is what an external authorization service speaks.
type ProviderProtocol uint8

// The protocols: Envoy's envoy.service.auth.v3.Authorization, and HTTP, where
// the status of the answer decides.
const (
	ProviderGRPC ProviderProtocol = iota
	ProviderHTTP
)

// RequestAuthentication says which tokens requests may carry.
type RequestAuthentication struct {
	Rules []JWTRule
}

// JWTRule is one issuer whose tokens are accepted. A request with a token that
// no rule accepts is refused; one without a token passes.
type JWTRule struct {
	Issuer    string
	Audiences []string // one of them must be the token's; none: any will do
	// Keys is the issuer's key set, a JSON document (RFC 7517) of public
	// keys. Empty, it is not available, so that no token can be accepted.
	Keys string

	// Where tokens are; none at all means "Authorization: Bearer" and the
	// query's parameter "access_token".
	FromHeaders []JWTHeader
	FromParams  []string
	FromCookies []string

	Forward        bool          // the token stays in the request
	PayloadHeader  string        // gets the claims, in base64url; empty: none
	ClaimHeaders   []ClaimHeader // get single claims
	SpaceDelimited []string      // claims, "a.b" for nested ones, that are lists separated by blanks, besides scope and permission
}

// JWTHeader is a header with a token behind a prefix.
type JWTHeader struct{ Name, Prefix string }

// ClaimHeader is a header that gets the value of a claim, "a.b" for a nested
// one.
type ClaimHeader struct{ Header, Claim string }
