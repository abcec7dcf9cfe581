// Package meshconfig reads what holds for a whole mesh and is no object of
// Kubernetes: the file of tacitd --mesh-config, which tacit replays by, too.
//
// What does not belong here: what it leads to (xds/build).
package meshconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
)

// config is the file. Fields that Istio's MeshConfig has mean the same here.
type config struct {
	PathNormalization struct {
		Normalization string `json:"normalization"`
	} `json:"pathNormalization"`
	ExtensionProviders []json.RawMessage `json:"extensionProviders"`
	// TrustDomainAliases are other names of the trust domain, as in Istio's.
	TrustDomainAliases []string `json:"trustDomainAliases"`
	// ProviderTLS is TLS to providers, by their names.
	ProviderTLS map[string]tlsConfig `json:"providerTLS"`
	// RateLimitStore is the Redis in which shared limits are counted.
	RateLimitStore *struct {
		Host string     `json:"host"`
		Port uint16     `json:"port"`
		TLS  *tlsConfig `json:"tls"`
	} `json:"rateLimitStore"`
	// DefaultConfig is Istio's, of which only this is read.
	DefaultConfig struct {
		GatewayTopology struct {
			NumTrustedProxies uint32 `json:"numTrustedProxies"`
		} `json:"gatewayTopology"`
	} `json:"defaultConfig"`
	// TrustedProxies are principals, as in a policy, from whom
	// X-Forwarded-For is believed.
	TrustedProxies []string `json:"trustedProxies"`

	readFile func(string) ([]byte, error)
}

// tlsConfig is TLS to a server. Without a file the system's roots count.
type tlsConfig struct {
	ServerName string `json:"serverName"`
	CAFile     string `json:"caFile"`
}

// defaultProviderTimeout is Istio's.
const defaultProviderTimeout = 600 * time.Second

// Read sets what the file says; an empty name is no file. Certificates that it
// names are read by readFile, which gives none where they are of no interest.
func Read(file string, s *build.Settings, readFile func(string) ([]byte, error)) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the configuration of the mesh: %w", err)
	}
	c := config{readFile: readFile}
	if err := yaml.UnmarshalStrict(text, &c); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := c.apply(s); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

func (c *config) apply(s *build.Settings) error {
	modes := map[string]model.PathNormalization{
		"": model.NormalizeBase, "DEFAULT": model.NormalizeBase, "BASE": model.NormalizeBase, "MERGE_SLASHES": model.NormalizeMergeSlashes,
		"DECODE_AND_MERGE_SLASHES": model.NormalizeDecodeAndMergeSlashes, "NONE": model.NormalizeNone,
	}
	mode, ok := modes[c.PathNormalization.Normalization]
	if !ok {
		return fmt.Errorf("pathNormalization.normalization: %q is none of BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES, NONE", c.PathNormalization.Normalization)
	}
	s.Paths = mode
	for i, name := range c.TrustDomainAliases {
		if domain, err := spiffeid.TrustDomainFromString(name); err != nil || domain.Name() != name {
			return fmt.Errorf("trustDomainAliases[%d]: %q is not the name of a trust domain, such as cluster.local", i, name)
		}
	}
	s.TrustDomainAliases = c.TrustDomainAliases
	if err := c.forwarding(s); err != nil {
		return err
	}
	s.Providers = map[string]*model.Provider{}
	for i, text := range c.ExtensionProviders {
		p, err := c.provider(text)
		if err != nil {
			return fmt.Errorf("extensionProviders[%d]: %w", i, err)
		}
		if p != nil {
			s.Providers[p.Name] = p
		}
	}
	for name := range c.ProviderTLS {
		if s.Providers[name] == nil {
			return fmt.Errorf("providerTLS[%s]: there is no provider of this name", name)
		}
	}
	if store := c.RateLimitStore; store != nil {
		if store.Host == "" || store.Port == 0 {
			return errors.New("rateLimitStore: host and port are to be given")
		}
		s.LimitStore = &model.LimitStore{Host: store.Host, Port: store.Port, TLS: store.TLS != nil}
		var err error
		if s.LimitStore.ServerName, s.LimitStore.Roots, err = c.read(store.TLS); err != nil {
			return fmt.Errorf("rateLimitStore.tls: %w", err)
		}
	}
	return nil
}

// forwarding: everybody can send X-Forwarded-For, so it takes both a number and
// names to believe it.
func (c *config) forwarding(s *build.Settings) error {
	n := c.DefaultConfig.GatewayTopology.NumTrustedProxies
	switch {
	case n > 0 && len(c.TrustedProxies) == 0:
		return errors.New("defaultConfig.gatewayTopology.numTrustedProxies: trustedProxies is to name the principals of the proxies that connect to workloads; X-Forwarded-For is believed from nobody else")
	case n == 0 && len(c.TrustedProxies) > 0:
		return errors.New("trustedProxies: defaultConfig.gatewayTopology.numTrustedProxies is to say how many proxies add to X-Forwarded-For, those included")
	}
	s.Forwarding = model.Forwarding{Proxies: n}
	for i, text := range c.TrustedProxies {
		principal := strings.TrimPrefix(text, "spiffe://")
		if principal == "" {
			return fmt.Errorf("trustedProxies[%d]: empty", i)
		}
		s.Forwarding.Callers = append(s.Forwarding.Callers, model.ParseStringMatch(principal))
	}
	return nil
}

func (c *config) read(t *tlsConfig) (serverName, roots string, err error) {
	if t == nil || t.CAFile == "" {
		return serverNameOf(t), "", nil
	}
	pem, err := c.readFile(t.CAFile)
	return t.ServerName, string(pem), err
}

func serverNameOf(t *tlsConfig) string {
	if t == nil {
		return ""
	}
	return t.ServerName
}

// provider is nil for one that is not about authorization.
func (c *config) provider(text []byte) (*model.Provider, error) {
	var in meshv1alpha1.MeshConfig_ExtensionProvider
	if err := protojson.Unmarshal(text, &in); err != nil {
		return nil, err
	}
	out := &model.Provider{Name: in.GetName()}
	var err error
	switch grpc, http := in.GetEnvoyExtAuthzGrpc(), in.GetEnvoyExtAuthzHttp(); {
	case grpc != nil:
		err = fill(out, grpc.GetService(), grpc.GetPort(), grpc.GetTimeout(), grpc.GetStatusOnError())
		out.FailOpen = grpc.GetFailOpen()
		include(out, grpc.GetIncludeRequestBodyInCheck())
	case http != nil:
		err = fill(out, http.GetService(), http.GetPort(), http.GetTimeout(), http.GetStatusOnError())
		out.Protocol, out.FailOpen, out.PathPrefix = model.ProviderHTTP, http.GetFailOpen(), http.GetPathPrefix()
		include(out, http.GetIncludeRequestBodyInCheck())
		out.IncludeRequestHeaders = matches(slices.Concat(http.GetIncludeRequestHeadersInCheck(), http.GetIncludeHeadersInCheck())) //nolint:staticcheck // users still have the older name
		out.IncludeAdditionalHeaders = http.GetIncludeAdditionalHeadersInCheck()
		out.HeadersToUpstreamOnAllow = matches(http.GetHeadersToUpstreamOnAllow())
		out.HeadersToDownstreamOnDeny = matches(http.GetHeadersToDownstreamOnDeny())
		out.HeadersToDownstreamOnOK = matches(http.GetHeadersToDownstreamOnAllow())
	default:
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", in.GetName(), err)
	}
	if t, ok := c.ProviderTLS[out.Name]; ok {
		out.TLS = true
		if out.ServerName, out.Roots, err = c.read(&t); err != nil {
			return nil, fmt.Errorf("providerTLS[%s]: %w", out.Name, err)
		}
	}
	return out, nil
}

// fill sets what both kinds of providers have. A service is HOST, or NS/HOST
// as in Istio.
func fill(p *model.Provider, service string, port uint32, timeout *durationpb.Duration, status string) error {
	if p.Host = service[strings.LastIndexByte(service, '/')+1:]; p.Host == "" || p.Name == "" {
		return errors.New("name or service is missing")
	}
	if port == 0 || port > math.MaxUint16 {
		return fmt.Errorf("port: %d is not a port (1-65535)", port)
	}
	p.Port = uint16(port)
	if p.Timeout = defaultProviderTimeout; timeout != nil {
		if p.Timeout = timeout.AsDuration().Truncate(time.Millisecond); p.Timeout <= 0 {
			return fmt.Errorf("timeout: %v is not above 0", timeout.AsDuration())
		}
	}
	if status != "" {
		code, err := strconv.ParseUint(status, 10, 16)
		if err != nil || code < 400 || code > 599 {
			return fmt.Errorf("statusOnError: %q is no status of an error (400-599)", status)
		}
		p.StatusOnError = uint16(code)
	}
	return nil
}

func include(p *model.Provider, body *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody) {
	p.IncludeBody, p.AllowPartial, p.BodyAsBytes = body.GetMaxRequestBytes(), body.GetAllowPartialMessage(), body.GetPackAsBytes()
}

func matches(list []string) (out []model.StringMatch) {
	for _, s := range list {
		out = append(out, model.ParseStringMatch(s))
	}
	return out
}
