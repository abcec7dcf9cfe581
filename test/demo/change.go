package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

const frontendOnly = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: redis
  namespace: shop
spec:
  selector:
    matchLabels:
      app: redis
  action: ALLOW
  rules:
    - from:
        - source:
            serviceAccounts: ["frontend"]
`

// change takes a client off the policy of Redis while it is connected.
func (d *Demo) change(ctx context.Context) error {
	worker, redis := d.world.Pod("shop/worker"), d.world.Pod("shop/redis")
	c, err := worker.Dial(ctx, redisService)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := ping(c); err != nil {
		return fmt.Errorf("the worker gets no answer from Redis: %w", err)
	}
	d.out.say("the worker is connected to Redis and has its answer: +PONG")
	proxy := redis.Node.Proxy()
	mark, changed := proxy.Mark(), time.Now()
	if err := d.world.Apply(frontendOnly); err != nil {
		return err
	}
	d.out.say("policy shop/redis now allows the frontend alone")
	_ = c.SetReadDeadline(changed.Add(patience))
	_, err = c.Read(make([]byte, 1))
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the connection was not closed: %w", err)
	}
	d.out.proven("the living connection was closed after %d ms (%s)", time.Since(changed).Milliseconds(), endName(err))

	ended, err := newest(ctx, redis.Node, "ended", worker.Key, redis.Key, func(c admin.Connection) bool { return c.Denied })
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	line, err := proxy.WaitLog(wait, mark, func(line string) bool { return strings.Contains(line, ended.ID) })
	if err != nil {
		return err
	}
	if !strings.Contains(line, "shop/redis") {
		return fmt.Errorf("the log line does not name the policy: %s", line)
	}
	d.out.proven("node b's proxy logged the reason: %s", ended.Reason)
	d.out.output(line)
	return d.restorePolicies(ctx)
}

// restorePolicies puts the demo's own policies back, and waits until the
// worker may call Redis again.
func (d *Demo) restorePolicies(ctx context.Context) error {
	text, err := os.ReadFile(filepath.Join(d.config.Manifests, "policies.yaml"))
	if err == nil {
		err = d.world.Apply(string(text))
	}
	if err != nil {
		return err
	}
	return d.workerCanPing(ctx)
}

func endName(err error) string {
	if errors.Is(err, io.EOF) {
		return "FIN"
	}
	return "RST"
}

// ping is one request of Redis and its answer.
func ping(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "PING\r\n"); err != nil {
		return err
	}
	answer, err := bufio.NewReaderSize(c, 16).ReadString('\n')
	if err == nil && answer != "+PONG\r\n" {
		err = fmt.Errorf("answer of Redis: %q", answer)
	}
	return err
}
