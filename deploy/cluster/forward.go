package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// forward leads a port of this machine's loopback device, 0 for any, to one of a
// pod's own. It returns which it is, and what ends with it: when the context
// does, or the connection to the API server.
func (c *Cluster) forward(ctx context.Context, pod string, local, remote int) (port int, ended <-chan error, err error) {
	url := c.Client.CoreV1().RESTClient().Post().Namespace(c.Namespace).Resource("pods").Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return 0, nil, fmt.Errorf("forward a port to pod %s: %w", pod, err)
	}
	tunnel, err := portforward.NewSPDYOverWebsocketDialer(url, c.Config)
	if err != nil {
		return 0, nil, fmt.Errorf("forward a port to pod %s: %w", pod, err)
	}
	older := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	dialer := portforward.NewFallbackDialer(tunnel, older, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	ready, done := make(chan struct{}), make(chan error, 1)
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("%d:%d", local, remote)}, ctx.Done(), ready, io.Discard, io.Discard)
	if err != nil {
		return 0, nil, fmt.Errorf("forward a port to pod %s: %w", pod, err)
	}
	go func() { done <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		return 0, nil, fmt.Errorf("forward a port to pod %s: %w (it takes the right to create pods/portforward in namespace %s)", pod, err, c.Namespace)
	}
	ports, err := f.GetPorts()
	if err != nil {
		return 0, nil, fmt.Errorf("forward a port to pod %s: %w", pod, err)
	}
	return int(ports[0].Local), done, nil
}
