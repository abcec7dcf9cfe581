package observe

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// Secrets of several words, wherever people can configure any.
const (
	inPolicy   = "5ecret of a policy"
	inProvider = "5ecret of a provider"
	inKeys     = "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE" // of RFC 7517, as the public parts are
	configured = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: gate, namespace: mesh}
spec:
  action: DENY
  selector: {matchLabels: {app: nginx}}
  rules:
  - to: [{operation: {paths: ["/gate"]}}]
    when:
    - {key: "request.headers[x-gate]", notValues: ["` + inPolicy + `", "` + inPolicy + `*", "*` + inPolicy + `"]}
    - {key: "request.headers[authorization]", values: ["Bearer ` + inPolicy + `"]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: mesh}
spec: {action: CUSTOM, provider: {name: judge}, selector: {matchLabels: {app: nginx}}, rules: [{to: [{operation: {paths: ["/asked"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: mesh}
spec:
  selector: {matchLabels: {app: nginx}}
  jwtRules: [{issuer: issuer.example, fromHeaders: [{name: x-token}], jwks: '{"keys": [{"kty": "oct", "k": "` + inKeys + `"}, {"kty": "EC", "crv": "P-256", "kid": "a", "x": "` + publicX + `", "y": "` + publicY + `", "d": "` + inKeys + `"}]}'}]
`
	publicX, publicY = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"
)

// meshConfig names a provider that is told who asks.
func meshConfig(t *testing.T) world.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "mesh.yaml")
	text := `extensionProviders: [{name: judge, envoyExtAuthzHttp: {service: 198.18.2.30, port: 9000, includeAdditionalHeadersInCheck: {x-key: "` + inProvider + `"}}}]`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return world.Config{ControlArgs: []string{"--mesh-config", file}}
}

// What can be asked of a proxy, and what it logs, holds no private key, no token
// and nothing that callers send beyond what is said to be recorded.
func TestNothingSecretIsShown(t *testing.T) {
	manifest, err := os.ReadFile("testdata/nginx.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m := e2e.StartWith(t, meshConfig(t), covered, configured, string(manifest))
	if err := m.StartApps(m.Context()); err != nil {
		t.Fatal(err)
	}
	const header, query, cookie, body = "5ecret-in-header", "5ecret-in-query", "5ecret-in-cookie", "5ecret-in-body"
	for _, path := range []string{"/hello", "/secret/a"} {
		out, err := m.Pod("mesh/client").Command(m.Context(), "curl", "-sS", "-H", "Authorization: Bearer "+header, "-H", "Cookie: session="+cookie,
			"-d", body, nginx+path+"?password="+query).CombinedOutput()
		if err != nil {
			t.Fatalf("curl: %v: %s", err, out)
		}
	}
	secrets := keysAndTokens(t, m)
	for _, text := range []string{header, query, cookie, body, inPolicy, inProvider, inKeys} {
		secrets[text] = []byte(text)
	}
	shown := everythingShown(t, m)
	if !bytes.Contains(shown["node b /flows"], []byte("/hello")) || !bytes.Contains(shown["node b /certificates"], []byte("sa/nginx")) {
		t.Fatalf("what is shown is not about these calls: %s, %s", shown["node b /flows"], shown["node b /certificates"])
	}
	if exported := shown["node b export"]; !bytes.Contains(exported, []byte("x-gate")) || !bytes.Contains(exported, []byte("judge")) || !bytes.Contains(exported, []byte("issuer.example")) {
		t.Fatal("what is exported is not about what is configured")
	}
	for where, text := range shown {
		for what, secret := range secrets {
			if bytes.Contains(text, secret) {
				t.Errorf("%s shows %s", where, what)
			}
		}
	}
}

// keysAndTokens are those of the mesh, and what every private key begins with.
func keysAndTokens(t *testing.T, m *e2e.Mesh) map[string][]byte {
	t.Helper()
	secrets := map[string][]byte{
		"a key in PEM": []byte("PRIVATE KEY"), "an EC key in base64": []byte("MHcCAQEE"), "a key in base64": []byte("MIGHAgEA"),
	}
	tokens, err := filepath.Glob(filepath.Join(m.Dir(), "nodes", "*", "proxy", "token"))
	if err != nil || len(tokens) != len(m.Nodes()) {
		t.Fatalf("tokens %v, %v", tokens, err)
	}
	for _, file := range tokens {
		secrets["the token "+file] = bytes.TrimSpace(contents(t, file))
	}
	block, _ := pem.Decode(contents(t, filepath.Join(m.Dir(), "ca", "ca.key")))
	if block == nil {
		t.Fatal("the CA's key is not PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, err := parsed.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	secrets["the CA's key"], secrets["the CA's key in hex"] = key, []byte(hex.EncodeToString(key))
	for shift := range 3 { // how base64 has it depends on what is before it
		text := base64.StdEncoding.EncodeToString(append(make([]byte, shift), key...))
		secrets[fmt.Sprint("the CA's key in base64, ", shift)] = []byte(text[4:40])
	}
	return secrets
}

// everythingShown is every answer of the proxies, their metrics, what tacit
// makes of them, and all logs.
func everythingShown(t *testing.T, m *e2e.Mesh) map[string][]byte {
	t.Helper()
	shown := map[string][]byte{}
	for _, n := range m.Nodes() {
		for _, path := range []string{"/status", "/dump", "/connections?live", "/connections?ended", "/connections?denied", "/flows?since=1h", "/coverage", "/certificates"} {
			text, err := m.AdminText(n.Name, path)
			if err != nil {
				t.Fatal(err)
			}
			name, _, _ := strings.Cut(path, "?")
			shown["node "+n.Name+" "+name] = append(shown["node "+n.Name+" "+name], text...)
		}
		for _, command := range []string{"status", "dump", "connections --ended", "flows", "coverage --pairs", "certs"} {
			shown["node "+n.Name+" tacit "+command] = []byte(tacit(t, m, n.Name, strings.Fields(command)...))
		}
		var dump struct{ Export []byte }
		if err := m.Admin(n.Name, "/dump?export", &dump); err != nil {
			t.Fatal(err)
		}
		shown["node "+n.Name+" export"] = dump.Export
		shown["node "+n.Name+" metrics"] = get(t, n.HTTP(), n.MetricsURL())
	}
	logs, err := filepath.Glob(filepath.Join(m.Dir(), "logs", "*.log"))
	if err != nil || len(logs) < 5 {
		t.Fatalf("logs %v, %v", logs, err)
	}
	for _, file := range logs {
		shown["log "+filepath.Base(file)] = contents(t, file)
	}
	return shown
}

func get(t *testing.T, client *http.Client, url string) []byte {
	t.Helper()
	response, err := client.Get(url) //nolint:noctx // a test's own server
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func contents(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
