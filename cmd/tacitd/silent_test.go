package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// cable carries connections to a server. Once it is cut, those that there are
// carry nothing any more, and neither end is told.
type cable struct {
	net.Listener
	server string
	cuts   atomic.Int32
}

func startCable(t *testing.T, server string) *cable {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &cable{Listener: listener, server: server}
	var carrying sync.WaitGroup
	carrying.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", l.server)
			if err != nil {
				_ = client.Close()
				continue
			}
			cuts := l.cuts.Load()
			carrying.Go(func() { l.carry(client, server, cuts) })
			carrying.Go(func() { l.carry(server, client, cuts) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); carrying.Wait() }) // once the server has closed what there is
	return l
}

func (l *cable) carry(from, to net.Conn, cuts int32) {
	defer func() { _ = to.Close() }()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		if l.cuts.Load() != cuts {
			continue
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// When the connection to the API server has silently died, the CA's state is
// read again as soon as one look at it was given up.
func TestSilentConnectionToTheAPI(t *testing.T) {
	secret, err := newCASecret("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	secret.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}
	secret.Namespace, secret.Name = "tacit-system", "tacit-ca"
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(secret)
	}))
	api.EnableHTTP2 = true
	api.StartTLS()
	l := startCable(t, api.Listener.Addr().String())
	t.Cleanup(api.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c",
"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {"token": "t"}}],
"clusters": [{"name": "c", "cluster": {"server": "https://%s", "insecure-skip-tls-verify": true}}]}`, l.Addr())
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := newClients(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	store := &secretStore{c.authority, "tacit-system"}
	look := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		state, err := store.Load(ctx)
		if err == nil && string(state.Key) != string(secret.Data[corev1.TLSPrivateKeyKey]) {
			err = errors.New("it is another one")
		}
		return err
	}
	if err := look(patience); err != nil {
		t.Fatal(err)
	}
	l.cuts.Add(1)
	if err := look(time.Second / 2); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("over the cable that is cut: %v", err)
	}
	if err := look(patience); err != nil {
		t.Errorf("after a look that was given up: %v", err)
	}
}
