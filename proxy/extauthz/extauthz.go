// Package extauthz asks providers outside of the proxy about requests, as
// CUSTOM policies want: over gRPC by Envoy's ext_authz protocol, or over HTTP,
// where the status of the answer decides.
//
// What does not belong here: which requests are asked about (proxy/policy) and
// what is done with those denied.
package extauthz

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

const (
	// maxAsking bounds the questions under way, maxProviders the connections.
	maxAsking    = 1000
	maxProviders = 256
	// maxAnswer bounds the body of a denial.
	maxAnswer = 64 << 10
)

// Dialer connects to "HOST:PORT" as somebody; as is a Question's As.
type Dialer func(ctx context.Context, as, network, address string) (net.Conn, error)

// Question is a request to ask about.
type Question struct {
	// As is on whose behalf the provider is asked: connections to it are not
	// shared with others. Empty is nobody in particular.
	As          string
	ID          string // of the connection
	Method      string
	Target      string // path and query
	Host        string
	Protocol    string // "HTTP/1.1", "HTTP/2"
	Headers     []policy.HeaderField
	Source      netip.AddrPort
	Destination netip.AddrPort
	// Body is the beginning of the request's, as much as the provider is to
	// see; Partial, unless it is all.
	Body    []byte
	Partial bool
	// Principal is the caller's SPIFFE id, Local the application's; empty
	// where there is none.
	Principal, Local string
}

// Answer is what a provider says.
type Answer struct {
	Allowed bool
	// Status, Headers and Body are for the caller of a request that is denied.
	Status  int
	Headers []policy.HeaderField
	Body    string
	// Set, Append and Remove change the header of one that is allowed.
	Set, Append []policy.HeaderField
	Remove      []string
	// RespondSet and RespondAdd change the header of the response to it.
	RespondSet, RespondAdd []policy.HeaderField
}

// Client asks providers. It keeps a connection to each.
type Client struct {
	dial   Dialer
	asking chan struct{}

	mu    sync.Mutex
	conns map[string]*provider // by what they are reached by
}

type provider struct {
	as   string
	used time.Time // guarded by Client.mu
	grpc *grpc.ClientConn
	http *http.Client
}

// New connects through dial.
func New(dial Dialer) *Client {
	return &Client{dial: dial, asking: make(chan struct{}, maxAsking), conns: map[string]*provider{}}
}

// Close ends the connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, p := range c.conns {
		p.close()
		delete(c.conns, key)
	}
}

// Forget ends the connections that were made as somebody.
func (c *Client) Forget(as string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, p := range c.conns {
		if p.as == as {
			p.close()
			delete(c.conns, key)
		}
	}
}

func (p *provider) close() {
	if p.grpc != nil {
		_ = p.grpc.Close()
	}
	if p.http != nil {
		p.http.CloseIdleConnections()
	}
}

// Ask asks a provider, for as long as its timeout. An error means that it
// cannot be asked.
func (c *Client) Ask(ctx context.Context, to *model.Provider, q *Question) (*Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, to.Timeout)
	defer cancel()
	select {
	case c.asking <- struct{}{}:
		defer func() { <-c.asking }()
	case <-ctx.Done():
		return nil, errors.New("too many questions to providers are under way")
	}
	p, err := c.provider(to, q.As)
	if err != nil {
		return nil, err
	}
	if to.Protocol == model.ProviderHTTP {
		return p.askHTTP(ctx, to, q)
	}
	return p.askGRPC(ctx, to, q)
}

func (c *Client) provider(to *model.Provider, as string) (*provider, error) {
	address := net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port)))
	key := fmt.Sprint(as, " ", to.Protocol, " ", address, " ", to.TLS, " ", to.ServerName, " ", to.Roots)
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.conns[key]; p != nil {
		p.used = time.Now()
		return p, nil
	}
	if len(c.conns) >= maxProviders {
		c.forgetOldest()
	}
	var secure *tls.Config
	if to.TLS {
		var err error
		if secure, err = tlsConfig(to); err != nil {
			return nil, err
		}
	}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		return c.dial(ctx, as, network, address)
	}
	p := &provider{as: as, used: time.Now()}
	if to.Protocol == model.ProviderHTTP {
		p.http = httpClient(dial, secure)
	} else {
		var err error
		if p.grpc, err = grpcClient(dial, address, secure); err != nil {
			return nil, fmt.Errorf("provider %s: %w", to.Name, err)
		}
	}
	c.conns[key] = p
	return p, nil
}

// forgetOldest makes room in the place of what nobody has asked for the longest
// time. Called with mu held.
func (c *Client) forgetOldest() {
	oldest := ""
	for key, p := range c.conns {
		if o := c.conns[oldest]; o == nil || p.used.Before(o.used) {
			oldest = key
		}
	}
	c.conns[oldest].close()
	delete(c.conns, oldest)
}

// retries are soon: what is asked about meanwhile is denied.
var retries = backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

type dialContext = func(ctx context.Context, network, address string) (net.Conn, error)

func grpcClient(dial dialContext, address string, secure *tls.Config) (*grpc.ClientConn, error) {
	transport := insecure.NewCredentials()
	if secure != nil {
		transport = credentials.NewTLS(secure)
	}
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(transport),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "tcp", address) }),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retries, MinConnectTimeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<20)),
		grpc.WithNoProxy())
}

func httpClient(dial dialContext, secure *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dial, TLSClientConfig: secure, MaxIdleConnsPerHost: 64, MaxConnsPerHost: 256,
			MaxResponseHeaderBytes: maxAnswer, DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func tlsConfig(to *model.Provider) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: to.ServerName}
	if config.ServerName == "" {
		config.ServerName = to.Host
	}
	if to.Roots != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(to.Roots)) {
			return nil, fmt.Errorf("provider %s: its roots are no PEM certificates", to.Name)
		}
	}
	return config, nil
}
