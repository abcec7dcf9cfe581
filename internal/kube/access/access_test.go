package access

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const kubeconfig = `
apiVersion: v1
kind: Config
current-context: here
clusters: [{name: c, cluster: {server: "https://198.18.0.1:6443"}}]
users: [{name: u, user: {token: secret}}]
contexts:
- {name: here, context: {cluster: c, user: u}}
`

func TestConfig(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	dir := t.TempDir()
	good, broken := filepath.Join(dir, "good"), filepath.Join(dir, "broken")
	for path, text := range map[string]string{good: kubeconfig, broken: "a: [b"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := Config(good)
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://198.18.0.1:6443" || config.BearerToken != "secret" || !strings.HasPrefix(config.UserAgent, "tacit/") {
		t.Errorf("got host %q, token %q, user agent %q", config.Host, config.BearerToken, config.UserAgent)
	}
	if config.Timeout != 0 {
		t.Errorf("a timeout of %v would end every watch", config.Timeout)
	}
	for path, want := range map[string]string{
		"":                           "name a file with --kubeconfig",
		broken:                       broken,
		filepath.Join(dir, "absent"): "absent",
	} {
		if _, err := Config(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", path, err, want)
		}
	}
}
