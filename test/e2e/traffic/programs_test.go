package traffic

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// Programs that know nothing of a mesh work through it as they are, all of
// their connections by mutual TLS.
func TestPrograms(t *testing.T) {
	manifests, err := os.ReadFile("testdata/programs.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m := e2e.Start(t, string(manifests))
	for family, version := range []string{"IPv4", "IPv6"} {
		for name, use := range map[string]func(*testing.T, *e2e.Mesh, string){
			"mesh/nginx": useNginx, "mesh/redis": useRedis, "mesh/postgres": usePostgres,
		} {
			t.Run(version+"/"+name, func(t *testing.T) {
				use(t, m, m.Pod(name).Addresses[family].String())
				connections := m.Connections("a", "ended", "mesh/client", name)
				if len(connections) == 0 {
					t.Error("no connection went through the mesh")
				}
				for _, c := range connections {
					if c.Security != "mtls" {
						t.Errorf("a connection went as %q", c.Security)
					}
				}
			})
		}
	}
}

// run runs a program in the client's pod and returns what it prints.
func run(t *testing.T, m *e2e.Mesh, command string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bulkPatience)
	defer cancel()
	text, err := m.Pod("mesh/client").Command(ctx, command, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", command, strings.Join(args, " "), err, text)
	}
	return string(text)
}

func useNginx(t *testing.T, m *e2e.Mesh, address string) {
	if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	base := "http://" + address + "/"
	// One connection serves all of it; %{num_connects} counts new ones.
	got := run(t, m, "curl", "-sSf", "-w", "%{num_connects}\n", base+"small", base+"small", base+"small")
	if want := "hello\n1\nhello\n0\nhello\n0\n"; got != want {
		t.Errorf("curl with keepalive says %q, want %q", got, want)
	}
	file := filepath.Join(t.TempDir(), "large")
	run(t, m, "curl", "-sSf", "-o", file, base+"large")
	here, there := digest(t, file), digest(t, filepath.Join(m.Dir(), "pods/mesh_nginx/volumes/tmp/large"))
	if here != there {
		t.Errorf("a large file arrives as %x, want %x", here, there)
	}
}

func digest(t *testing.T, file string) [sha256.Size]byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(content)
}

func useRedis(t *testing.T, m *e2e.Mesh, address string) {
	got := run(t, m, "redis-benchmark", "-h", address, "-q", "-n", "2000", "-c", "20", "-P", "4", "-d", "1000", "-t", "ping,set,get,lrange_100")
	if strings.Contains(got, "rror") || !strings.Contains(got, "LRANGE_100") {
		t.Errorf("redis-benchmark says\n%s", got)
	}

	ctx, cancel := context.WithTimeout(t.Context(), e2e.Patience)
	defer cancel()
	subscriber := m.Pod("mesh/client").Command(ctx, "redis-cli", "-h", address, "subscribe", "news")
	said, err := subscriber.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := subscriber.Start(); err != nil {
		t.Fatal(err)
	}
	m.Eventually("somebody subscribes", func() error {
		if n := run(t, m, "redis-cli", "-h", address, "publish", "news", "peace"); n != "1\n" {
			return fmt.Errorf("published to %q", n)
		}
		return nil
	})
	heard := false
	for lines := bufio.NewScanner(said); !heard && lines.Scan(); {
		heard = lines.Text() == "peace"
	}
	if !heard {
		t.Error("the subscriber has heard nothing")
	}
	cancel()
	_ = subscriber.Wait() // ended by us
}

func usePostgres(t *testing.T, m *e2e.Mesh, address string) {
	base := []string{"-h", address, "-U", "postgres"}
	if got := run(t, m, "psql", append(base, "-Atc", "select sum(n) from generate_series(1, 100000) n", "postgres")...); got != "5000050000\n" {
		t.Errorf("psql says %q", got)
	}
	run(t, m, "pgbench", append(base, "-q", "-i", "-s", "1", "postgres")...)
	got := run(t, m, "pgbench", append(base, "-n", "-c", "4", "-t", "50", "postgres")...)
	if !strings.Contains(got, "actually processed: 200/200") {
		t.Errorf("pgbench says\n%s", got)
	}
}
