package identity

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// nginx serves a page on node b.
const nginx = `
apiVersion: v1
kind: ConfigMap
metadata: {name: nginx, namespace: mesh}
data:
  nginx.conf: |
    user root;
    worker_processes 1;
    daemon off;
    pid /tmp/nginx.pid;
    error_log /dev/stderr;
    events {}
    http {
      access_log off;
      client_body_temp_path /tmp/body;
      proxy_temp_path /tmp/proxy;
      fastcgi_temp_path /tmp/fastcgi;
      uwsgi_temp_path /tmp/uwsgi;
      scgi_temp_path /tmp/scgi;
      server {
        listen 80;
        location / { return 200 "hello\n"; }
      }
    }
---
apiVersion: v1
kind: Pod
metadata: {name: nginx, namespace: mesh, annotations: {tacit.mesh/redirection: enabled}}
spec:
  nodeName: b
  serviceAccountName: nginx
  containers:
  - name: nginx
    image: nginx
    command: ["nginx", "-e", "/dev/stderr", "-c", "/etc/nginx/nginx.conf"]
    ports: [{name: http, containerPort: 80}]
    volumeMounts: [{name: config, mountPath: /etc/nginx}, {name: tmp, mountPath: /tmp}]
  volumes: [{name: config, configMap: {name: nginx}}, {name: tmp, emptyDir: {}}]
status:
  podIPs: [{ip: "198.18.2.50"}]
`

const page = "http://198.18.2.50/"

// repetition is something that is done ten times a second until it fails.
type repetition struct {
	done   atomic.Int64          // how often it went well
	failed atomic.Pointer[error] // what ended it
	end    func() error          // ends it, and returns the failure
}

func repeat(t *testing.T, once func() error) *repetition {
	t.Helper()
	r := &repetition{}
	stop, stopped := make(chan struct{}), make(chan struct{})
	var failure error
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Second / 10)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			if failure = once(); failure != nil {
				r.failed.Store(&failure)
				return
			}
			r.done.Add(1)
		}
	}()
	r.end = sync.OnceValue(func() error {
		close(stop)
		<-stopped
		return failure
	})
	t.Cleanup(func() { _ = r.end() })
	return r
}

// load is traffic of all kinds.
type load struct {
	*e2e.Mesh
	t    *testing.T
	ways map[string]*repetition
}

func everyWay(t *testing.T, m *e2e.Mesh) *load {
	t.Helper()
	live := dialLive(t, m) // one connection through all of it
	l := &load{Mesh: m, t: t}
	l.ways = map[string]*repetition{
		"new connections": repeat(t, func() error {
			_, err := m.Call("mesh/client", server)
			return err
		}),
		"new connections of another pod": repeat(t, func() error {
			_, err := m.Call("mesh/near", server)
			return err
		}),
		"requests to nginx": repeat(t, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), rotationPatience)
			defer cancel()
			text, err := m.Pod("mesh/client").Command(ctx, "curl", "-sSf", page, page, page).CombinedOutput()
			if want := strings.Repeat("hello\n", 3); err != nil || string(text) != want {
				return fmt.Errorf("curl: %w: %s", err, text)
			}
			return nil
		}),
		"a connection that lives on": repeat(t, func() error {
			text, got := []byte("still here"), make([]byte, 10)
			if err := live.SetDeadline(time.Now().Add(e2e.Patience)); err != nil {
				return err
			}
			if _, err := live.Write(text); err != nil {
				return err
			}
			if _, err := io.ReadFull(live, got); err != nil {
				return err
			}
			if !bytes.Equal(text, got) {
				return fmt.Errorf("%q came back", got)
			}
			return nil
		}),
	}
	return l
}

// goOn waits until each way has been gone some times more.
func (l *load) goOn() {
	l.t.Helper()
	const more = 5
	wanted := map[string]int64{}
	for name, way := range l.ways {
		wanted[name] = way.done.Load() + more
	}
	l.Eventually("traffic goes on", func() error {
		for name, way := range l.ways {
			if failure := way.failed.Load(); failure != nil {
				l.t.Fatalf("%s: after %d that went well: %v", name, way.done.Load(), *failure)
			}
			if n := way.done.Load(); n < wanted[name] {
				return fmt.Errorf("%s: %d, want %d", name, n, wanted[name])
			}
		}
		return nil
	})
}

// finish fails the test if any of it was lost.
func (l *load) finish() {
	l.t.Helper()
	for name, way := range l.ways {
		err := way.end()
		n := way.done.Load()
		if err != nil {
			l.t.Errorf("%s: after %d that went well: %v", name, n, err)
		}
		if n < 10 {
			l.t.Errorf("%s: only %d", name, n)
		}
	}
}
