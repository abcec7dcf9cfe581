package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// Bounds on a program in a pod: what it says is read to the end by a person.
const (
	runTimeout = 2 * time.Minute
	maxOutput  = 256 << 20
)

// ExitError is that a program in a pod ended with a code other than 0.
type ExitError struct {
	Code   int
	Stderr string
}

func (e *ExitError) Error() string {
	if e.Stderr != "" {
		return e.Stderr
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// exec runs a command to its end and returns what it says.
func (c *Cluster) exec(ctx context.Context, pod, container string, command []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	stdout := bounded{limit: maxOutput}
	err := c.stream(ctx, pod, container, command, &stdout)
	return stdout.text.Bytes(), err
}

// stream runs a command by way of the API server: WebSocket, or SPDY where a
// server or a proxy in between is older.
func (c *Cluster) stream(ctx context.Context, pod, container string, command []string, stdout io.Writer) error {
	url := c.Client.CoreV1().RESTClient().Post().Namespace(c.Namespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&core.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	spdy, err := remotecommand.NewSPDYExecutor(c.Config, http.MethodPost, url)
	if err != nil {
		return fmt.Errorf("run in pod %s: %w", pod, err)
	}
	websocket, err := remotecommand.NewWebSocketExecutor(c.Config, http.MethodGet, url.String())
	if err != nil {
		return fmt.Errorf("run in pod %s: %w", pod, err)
	}
	executor, err := remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return fmt.Errorf("run in pod %s: %w", pod, err)
	}
	stderr := bounded{limit: 64 << 10}
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stdout, Stderr: &stderr})
	var code exec.CodeExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &code):
		return &ExitError{Code: code.Code, Stderr: strings.TrimSpace(stderr.text.String())}
	}
	return fmt.Errorf("run %s in pod %s: %w (it takes the right to create pods/exec in namespace %s)", command[0], pod, err, c.Namespace)
}

// bounded keeps what is written, up to its limit.
type bounded struct {
	text  bytes.Buffer // not embedded: its ReadFrom would know no limit
	limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.text.Len()+len(p) > b.limit {
		return 0, fmt.Errorf("more than %d bytes", b.limit)
	}
	return b.text.Write(p)
}
