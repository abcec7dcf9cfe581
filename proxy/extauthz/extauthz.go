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
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tacit-mesh/tacit/proxy/kept"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

// MaxConns bounds the connections to one provider over HTTP, whoever asks, with
// those that are still being made for who has left: Linux has 28,232 ports for
// these by default.
const MaxConns = 8192

const (
	// maxProviders bounds the connections, and maxProvidersEach those on behalf
	// of one.
	maxProviders     = 256
	maxProvidersEach = 64
	// maxIdle connections to a provider over HTTP stay open without a question,
	// for idleConn.
	maxIdle  = 1024
	idleConn = 30 * time.Second
	// maxAnswer bounds the body of an answer, and maxDrain how long a decision is
	// held up by one that is of no use to it.
	maxAnswer = 64 << 10
	maxDrain  = 20 * time.Millisecond
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

// Client asks providers. It keeps a connection to each; over HTTP one for each
// question that is under way. How many those are, and whose, is the callers'
// business: here, a few who wait for slow answers would keep the others from
// asking.
type Client struct {
	dial  Dialer
	conns *kept.Set[string, *provider] // by what they are reached by
}

type provider struct {
	grpc *grpc.ClientConn
	http *http.Client
}

// New connects through dial.
func New(dial Dialer) *Client {
	return &Client{dial: dial, conns: kept.New[string, *provider](maxProviders, maxProvidersEach)}
}

// Close ends the connections.
func (c *Client) Close() { c.conns.Close() }

// Forget ends the connections that were made as somebody.
func (c *Client) Forget(as string) { c.conns.Forget(as) }

// Close implements io.Closer.
func (p *provider) Close() error {
	if p.http != nil {
		p.http.CloseIdleConnections()
	}
	if p.grpc != nil {
		return p.grpc.Close()
	}
	return nil
}

// Ask asks a provider, for as long as its timeout. An error means that it
// cannot be asked.
func (c *Client) Ask(ctx context.Context, to *model.Provider, q *Question) (*Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, to.Timeout)
	defer cancel()
	p, done, err := c.provider(ctx, to, q.As)
	if err != nil {
		return nil, err
	}
	defer done()
	if to.Protocol == model.ProviderHTTP {
		return p.askHTTP(ctx, to, q)
	}
	return p.askGRPC(ctx, to, q)
}

// provider is the connection to a provider, until done is called.
func (c *Client) provider(ctx context.Context, to *model.Provider, as string) (p *provider, done func(), err error) {
	address := net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port)))
	key := fmt.Sprint(as, " ", to.Protocol, " ", address, " ", to.TLS, " ", to.ServerName, " ", to.Roots)
	return c.conns.Use(ctx, as, key, func() (*provider, error) { return c.connect(to, as, address) })
}

// connect makes what connects to a provider when it is asked.
func (c *Client) connect(to *model.Provider, as, address string) (*provider, error) {
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
	if to.Protocol == model.ProviderHTTP {
		return &provider{http: httpClient(dial, secure)}, nil
	}
	client, err := grpcClient(dial, address, secure)
	if err != nil {
		return nil, fmt.Errorf("provider %s: %w", to.Name, err)
	}
	return &provider{grpc: client}, nil
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
			DialContext: dial, TLSClientConfig: secure,
			MaxConnsPerHost: MaxConns, MaxIdleConnsPerHost: maxIdle, IdleConnTimeout: idleConn,
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
