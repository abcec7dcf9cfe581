package http

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// nginx is a real one, of HTTP/1 and of HTTP/2.
type nginx struct{ plain, http2 net.Addr }

const nginxConfig = `daemon off; master_process off; error_log stderr crit; pid pid;
events {}
http {
  access_log off; client_body_temp_path body; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  large_client_header_buffers 8 64k; client_max_body_size 1m; lingering_close off;
  server {
    listen %[1]s; listen %[2]s http2;
    root .;
    location = /204 { return 204; }
    location = /304 { add_header ETag '"v1"'; return 304; }
    location = /500 { return 500 "broken\n"; }
    location = /large { try_files /large.txt =404; }
    location / { add_header X-Seen "$request_method $host $http_x_b"; return 200 "$request_method $request_uri $http_cookie\n"; }
  }
}
`

func startNginx(t *testing.T) nginx {
	t.Helper()
	n := nginx{free(t), free(t)}
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "large.txt"), make([]byte, 300_000), 0o644))
	runNginx(t, dir, fmt.Sprintf(nginxConfig, n.plain, n.http2), n.http2)
	return n
}

// free is an address that nobody listens at.
func free(t *testing.T) net.Addr {
	t.Helper()
	l := listen(t)
	must(t, l.Close())
	return l.Addr()
}

// runNginx returns when it listens at the address.
func runNginx(t *testing.T, dir, config string, at net.Addr) {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		t.Skipf("no nginx here: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(config), 0o600))
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "-p", dir, "-c", "nginx.conf")
	cmd.Stderr = t.Output()
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for until := time.Now().Add(patience); ; <-retry.C {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(until) {
			t.Fatalf("nginx does not listen: %v", err)
		}
	}
}
