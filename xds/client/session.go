package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/tacit-mesh/tacit/xds/wire"
)

const (
	maxMessage     = 200 << 20 // Istio's own limit for a whole mesh in one response
	connectTimeout = 10 * time.Second
	keepaliveAfter = 30 * time.Second
	keepaliveWait  = 10 * time.Second
	// maxHeld bounds the responses that are put by until the last of a change
	// is in. It takes three.
	maxHeld = 16
	// maxAnswers bounds the answers that wait to be sent. Receiving never waits
	// for them: a server that sends may not take anything meanwhile.
	maxAnswers = 1024
)

// session is one connection: subscribe to every type, then answer responses
// until it ends. It returns how many came, and why it ended. What came of a
// change that had not come whole by then is as if it had never been sent.
func (c *Client) session(ctx context.Context) (responses int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if ctx, err = c.authorize(ctx); err != nil {
		return 0, err
	}
	conn, err := c.dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return 0, c.failed("connect", err)
	}
	for _, request := range c.subscriptions() {
		if err := send(stream, request); err != nil {
			return 0, c.failed("subscribe", err)
		}
	}
	answers := make(chan *discovery.DeltaDiscoveryRequest, maxAnswers)
	var talking sync.WaitGroup
	defer talking.Wait()
	defer cancel()
	talking.Go(func() {
		c.talk(ctx, answers, func(r *discovery.DeltaDiscoveryRequest) error { return send(stream, r) })
	})
	var held []*discovery.DeltaDiscoveryResponse
	for {
		response, err := stream.Recv()
		if err != nil {
			return responses, c.failed("receive", err)
		}
		responses++
		held = append(held, response)
		if wire.MoreFollows(response.GetSystemVersionInfo()) {
			if len(held) == maxHeld {
				return responses, c.failed("receive", fmt.Errorf("a change is not complete after %d responses", maxHeld))
			}
			continue
		}
		for _, answer := range c.handle(held...) {
			select {
			case answers <- answer:
			default:
				return responses, c.failed("acknowledge", fmt.Errorf("%d answers have not been taken", maxAnswers))
			}
		}
		held = nil
	}
}

func (c *Client) failed(operation string, err error) error {
	return fmt.Errorf("xDS server %s: %s: %w", c.config.Server, operation, err)
}

// send leaves a broken stream's reason to Recv, which alone knows it.
func send(stream grpc.BidiStreamingClient[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse], request *discovery.DeltaDiscoveryRequest) error {
	if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (c *Client) dial() (*grpc.ClientConn, error) {
	pem, err := os.ReadFile(c.config.RootsFile)
	if err != nil {
		return nil, fmt.Errorf("xDS server's roots: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("xDS server's roots: no certificate in %s", c.config.RootsFile)
	}
	conn, err := grpc.NewClient(c.config.Server,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs:    roots,
			ServerName: c.config.ServerName,
			MinVersion: tls.VersionTLS13,
		})),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.ForceCodecV2(c.codec())),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveAfter, Timeout: keepaliveWait}),
		// One attempt: what follows a failure is Run's to decide.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: grpcbackoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, c.failed("address", err)
	}
	return conn, nil
}

func (c *Client) authorize(ctx context.Context) (context.Context, error) {
	if c.config.ClusterID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", c.config.ClusterID)
	}
	if c.config.TokenFile == "" {
		return ctx, nil
	}
	token, err := os.ReadFile(c.config.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("xDS token: %w", err)
	}
	if token = bytes.TrimSpace(token); len(token) == 0 {
		return nil, fmt.Errorf("xDS token: %s is empty", c.config.TokenFile)
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+string(token)), nil
}
