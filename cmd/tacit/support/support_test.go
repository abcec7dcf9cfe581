//go:build !inpod

package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"

	"github.com/tacit-mesh/tacit/deploy/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Planted secrets: none of them may be in what is packed.
const (
	keyLines = "MHcCAQEEIBplantedKeyplantedKeyplantedKeyoAoGCCqGSM49"
	jwt      = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJwbGFudGVkIn0.c2lnbmF0dXJlUGxhbnRlZA"
	password = "hunter2-planted"
	digits   = "8157329046"
	base64d  = "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tUGxhbnRlZA=="
)

func TestNoSecretStays(t *testing.T) {
	key := "-----BEGIN EC PRIVATE KEY-----\n" + keyLines + "\n-----END EC PRIVATE KEY-----\n"
	for name, text := range map[string]string{
		"key":               "before\n" + key + "after",
		"key, cut":          "before\n-----BEGIN PRIVATE KEY-----\n" + keyLines + "\n",
		"end of a key":      keyLines + "\n-----END PRIVATE KEY-----\nafter",
		"key in JSON":       `{"text":"` + strings.ReplaceAll(key, "\n", `\n`) + `"}`,
		"key in a log":      `{"level":"info","msg":"read ` + strings.ReplaceAll(key, "\n", `\n`) + `"}` + "\n{}\n",
		"token":             "presented " + jwt + " to the CA",
		"bearer":            "Authorization: Bearer " + password,
		"header in a log":   `{"msg":"x","authorization":"Basic ` + password + `"}` + "\n{}\n",
		"flag":              "--redis-password=" + password + " --node a",
		"flag in YAML":      "args: [--api-key, x]\nclient_secret: " + password + "\n",
		"quoted":            `password = "two words ` + password + `"` + "\n",
		"escaped":           `{"msg":"{\"token\":\"` + password + `\"}"}` + "\n{}\n",
		"URL":               "redis://user:" + password + "@redis:6379/0",
		"query":             "GET /login?access_token=" + password + "&x=1",
		"kubeconfig":        "client-key-data: " + base64d,
		"member":            `{"a":{"sharedSecret":"` + password + `","tokens":["` + password + `"]}}`,
		"variable":          `{"env":[{"name":"DB_PASSWORD","value":"` + password + `"}]}`,
		"header of policy":  `{"when":[{"key":"request.headers[x-api-key]","values":["` + password + `"],"notValues":["` + password + `"]}]}`,
		"Secret":            `{"items":[{"kind":"Secret","data":{"x":"` + password + `"},"stringData":{"y":"` + password + `"}}]}`,
		"applied":           `{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"` + password + `"},"managedFields":["` + password + `"]}}`,
		"symmetric key set": `{"jwks":"{\"keys\":[{\"k\":\"` + password + `\"}]}"}`,
		"member with a key": `{"annotations":{"note":"` + strings.ReplaceAll(key, "\n", `\n`) + `"}}`,
		"arguments apart":   `{"args":["--redis-password","` + password + `","--node","a"]}`,
		"apart in a script": `{"command":["sh","-c","run --redis-password ` + password + ` --node a"]}`,
		"apart in a log":    `started with ["--api-key", "` + password + `"]`,
		"block":             `{"data":{"app.yaml":"user: a\npassword: |\n  ` + password + `\n"}}`,
		"folded block":      `{"data":{"app.yaml":"a:\n- password: >-\n    ` + password + `\n  user: b\n"}}`,
		"second document":   `{"data":{"app.yaml":"a: 1\n---\nargs:\n- --api-key\n- ` + password + `\n"}}`,
		"block in a text":   "{{ not YAML\n  password: >-\n    " + password + "\n\n    " + password + "\n  user: b\n",
		"list of lines":     "tokens:\n- " + password + "\n- " + password + "\n",
		"digits":            "password: " + digits,
		"number":            `{"password":` + digits + `,"tokens":[` + digits + `]}`,
		"number in a log":   `{"msg":"x","password":` + digits + "}\n{}\n",
		"slash in a URL":    "redis://user:hun/" + password + "@h",
		"at in a URL":       "redis://user:p@" + password + "@h/0",
		"list in YAML":      "tokens: [a, " + password + "]\n",
		"list in a log":     `time=now {"password": ["x", "` + password + `"], "b": 1}`,
		"object in a log":   `{"credentials":{"user":"` + password + `"}}` + "\n{}\n",
		"lists in a list":   `{"tokens":[["a"],["` + password + `"]]}` + "\n{}\n",
		"quoted once":       "pwd = 'two words " + password + "'",
		"X-Auth":            "X-Auth: " + password,
		"signature":         "GET /blob?sv=1&sig=" + password,
		"code":              "GET /callback?code=" + password + "&state=x",
		"signature in JSON": `x {"path":"/blob?sv=1\u0026sig=` + password + `"}`,
		"words in YAML":     "password: correct horse " + password + "\nuser: b\n",
		"words in a log":    "level=info password=correct horse " + password + " user=b",
		"words of a header": "> X-Auth-Token: correct horse " + password + "\n",
		"words of a flag":   "run --redis-password correct horse " + password + " --node a",
		"words of a block":  "# not YAML {{\n  api_key = correct " + password + "; next\n",
		"parts of a cookie": "cookie: a=b; session=" + password + "; x=y",
		"cookie in a text":  "x refused, Set-Cookie: a=b; session=" + password + "; x=y\n",
		"AWS signature":     "authorization: AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=" + password + "\n",
		"working word":      "DB_PWD=" + password + " SMTP_PASS=" + password,
		"member pwd":        `{"pwd":"` + password + `","x-auth":"` + password + `"}`,
	} {
		got := string(Document([]byte(text)))
		for _, planted := range []string{keyLines, jwt, "hunter2", base64d[20:], digits} {
			if strings.Contains(got, planted) {
				t.Errorf("%s: %q is in %q", name, planted, got)
			}
		}
		if !strings.Contains(got, "redacted") && name != "applied" {
			t.Errorf("%s: nothing says that something was taken out of %q", name, got)
		}
	}
}

// What follows a secret of several words is another's.
func TestWordsEndWhereTheNextBegins(t *testing.T) {
	for text, want := range map[string]string{
		"level=info password=correct horse user=b msg=\"well done\"\n": "level=info password=\"[redacted]\" user=b msg=\"well done\"\n",
		"run --api-key correct horse --node a":                         "run --api-key \"[redacted]\" --node a",
		"token: a b, next one":                                         "token: \"[redacted]\", next one",
		"password: correct horse: battery a=b -c\n":                    "password: \"[redacted]\"\n",
		"  - password: correct horse: battery # why\nuser: b\n":        "  - password: \"[redacted]\"\nuser: b\n",
		"token=true and so on":                                         "token=true and so on",
	} {
		if got := string(Document([]byte(text))); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

// What a maintainer needs stays as it was.
func TestTheRestStays(t *testing.T) {
	for _, text := range []string{
		`{"id":"4bf92f3577b34da6a3ce929d0e0e4736","src.identity":"spiffe://cluster.local/ns/shop/sa/web","reason":"denied by policy"}` + "\n{}\n",
		`{"id":"4bf92f3577b34da6a3ce929d0e0e4736","src.identity":"spiffe://cluster.local/ns/shop/sa/web"}`,
		"--token=/var/run/secrets/tacit/token --root=/var/run/secrets/tacit/root-cert.pem",
		`{"automountServiceAccountToken":false,"secretName":"tacit-ca","expirationSeconds":3600}`,
		"tacit_certificate_renewal_timestamp_seconds{identity=\"spiffe://x/ns/a/sa/b\"} 1.7e+09",
		`{"key":"source.namespace","values":["shop"]}`,
		`{"name":"NODE_NAME","value":"node-a"}`,
		`{"generation":18446744073709551615}`,
		`{"tokenRequests":12,"maxTokens":7,"secret":{"defaultMode":420,"optional":false}}`,
		"token_count: 12, max_tokens=7 code=403",
		`{"args":["--token-file","/run/token","--node","node-a"]}`,
		"--token /var/run/secrets/tacit/token --node node-a",
		`{"data":{"mesh.yaml":"tokenLimit: 18446744073709551615\n"}}`,
		"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
	} {
		got := string(Document([]byte(text)))
		compact := &bytes.Buffer{}
		if json.Compact(compact, []byte(got)) == nil {
			got = compact.String()
		}
		if strings.Contains(got, "redacted") {
			t.Errorf("%s became %s", text, got)
		}
		for _, word := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(`{}",:[] `, r) }) {
			if !strings.Contains(got, word) {
				t.Errorf("%q is missing in %s", word, got)
			}
		}
	}
}

func text(s string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
}

// unpack returns the files of an archive by their base names.
func unpack(t *testing.T, archive io.Reader) map[string]string {
	t.Helper()
	in, err := gzip.NewReader(archive)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(in); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		content, readErr := io.ReadAll(r)
		if err := errors.Join(err, readErr); err != nil {
			t.Fatal(err)
		}
		if header.Mode != 0o600 || !strings.HasPrefix(header.Name, "tacit-support-") {
			t.Errorf("%s has mode %o", header.Name, header.Mode)
		}
		files[path.Base(header.Name)] = string(content)
	}
}

// The archive keeps within its bounds, and says itself what it lacks.
func TestPack(t *testing.T) {
	var (
		out  bytes.Buffer
		told []string
	)
	long := strings.Repeat("0123456789abcde\n", maxPart/16) + "the end\n"
	p := Packer{Command: []string{"tacit", "support", "--token", password, "--metrics", "http://u:" + password + "@h/metrics"}, MaxBytes: 2*maxPart + 1<<20, Progress: func(done, of int, f File) {
		if of != 6 || done != len(told)+1 {
			t.Errorf("%d of %d, after %d", done, of, len(told))
		}
		told = append(told, f.Name)
	}}
	index, err := p.Pack(t.Context(), &out, []Part{
		{Name: "a/status.json", Read: text(`{"node":"a"}`)},
		{Name: "b/status.json2", Read: func(context.Context) (io.ReadCloser, error) {
			return nil, errors.New("the node does not answer; password=" + password)
		}},
		{Name: "beginning.txt", Read: text(long)},
		{Name: "end.log", Read: text(long), Tail: true},
		{Name: "more.txt", Read: text(long)},
		{Name: "torn.txt", Read: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader("x"), torn{})), nil
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(told) != 6 || !index.Partial {
		t.Errorf("told of %v; partial %v", told, index.Partial)
	}
	files := unpack(t, &out)
	var read Index
	if err := json.Unmarshal([]byte(files["index.json"]), &read); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(read.Command, "tacit support --token ") || strings.Contains(files["index.json"], "hunter2") {
		t.Errorf("the command is %q", read.Command)
	}
	problems, total := map[string]string{}, 0
	for _, f := range read.Files {
		total += f.Bytes
		problems[path.Base(f.Name)] = f.Error
		if content, there := files[path.Base(f.Name)]; there == (f.Error != "") || len(content) != f.Bytes {
			t.Errorf("%+v, and %d bytes of it", f, len(content))
		}
		if long := f.Error == "" && f.Bytes >= maxPart; f.Cut != long && f.Error == "" {
			t.Errorf("%+v: cut should be %v", f, long)
		}
	}
	if total > p.MaxBytes || len(problems) != 6 {
		t.Errorf("%d bytes of %d, %d files", total, p.MaxBytes, len(problems))
	}
	if e := problems["status.json2"]; !strings.Contains(e, "does not answer") || strings.Contains(e, password) {
		t.Errorf("missing: %q", e)
	}
	if e := problems["torn.txt"]; !strings.Contains(e, "torn") {
		t.Errorf("torn: %q", e)
	}
	left := slices.DeleteFunc(slices.Collect(maps.Keys(problems)), func(name string) bool { return !strings.Contains(problems[name], "left out") })
	if len(left) != 1 {
		t.Errorf("left out: %v", left)
	}
	if end, ok := files["end.log"]; ok && (!strings.HasSuffix(end, "the end\n") || !strings.HasPrefix(end, cutMark)) {
		t.Errorf("the end of a log is %q", end[len(end)-20:])
	}
	if begin, ok := files["beginning.txt"]; ok && !strings.HasSuffix(begin, cutMark) {
		t.Errorf("the beginning ends with %q", begin[len(begin)-20:])
	}
}

type torn struct{}

func (torn) Read([]byte) (int, error) { return 0, errors.New("torn") }

// What is cut can no longer be read by its members: it is left out, and lists of
// objects are cut between two of them.
func TestNoSecretStaysInWhatIsCut(t *testing.T) {
	long := strings.Repeat("x", maxPart)
	secret := `{"name":"DB_PASSWORD","value":"` + password + `"}`
	part := Part{Name: "dump.json", Read: text("\n[" + secret + `,"` + long + `"]`)}
	if content, file := part.read(t.Context()); content != nil || !strings.Contains(file.Error, "larger than") {
		t.Errorf("%d bytes, %+v", len(content), file)
	}
	pod := func(name string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"namespace": "n", "name": name},
			"env": []any{map[string]any{"name": "DB_PASSWORD", "value": password}}, "text": long[:maxPart*2/5],
		}}
	}
	pods := kind{version: "v1", resource: "pods"}
	lists := map[schema.GroupVersionResource]string{{Version: "v1", Resource: "pods"}: "PodList"}
	c := &cluster.Cluster{Dynamic: fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, pod("a"), pod("b"), pod("c"))}
	part = objectsPart(c, pods, "pods.json")
	content, file := part.read(t.Context())
	var got struct{ Items []map[string]any }
	if err := json.Unmarshal(content, &got); err != nil || len(got.Items) != 2 || !file.Cut || file.Error != "" {
		t.Errorf("%d objects, %+v, %v", len(got.Items), file, err)
	}
	if strings.Contains(string(content), password) {
		t.Error("a secret stays in objects that were cut")
	}
}

func TestNothingPacked(t *testing.T) {
	p := Packer{MaxBytes: 1 << 20}
	index, err := p.Pack(t.Context(), io.Discard, []Part{{Name: "x", Read: func(context.Context) (io.ReadCloser, error) { return nil, errors.New("away") }}})
	if err == nil || !strings.Contains(err.Error(), "nothing is packed: x: away") || index.Packed() != 0 {
		t.Errorf("got %v, %+v", err, index)
	}
}

func TestNothingIsPackedForNobody(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := Packer{MaxBytes: 1 << 20}
	if _, err := p.Pack(ctx, io.Discard, []Part{{Name: "x", Read: text("")}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
