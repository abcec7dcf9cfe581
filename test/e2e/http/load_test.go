package http

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// h2load's summary.
var (
	loaded   = regexp.MustCompile(`requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)
	statuses = regexp.MustCompile(`status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx`)
)

// Under load from a program of others every answer is the right one, on
// connections that live on while policies come and go.
func TestLoad(t *testing.T) {
	m := e2e.Start(t, covered)
	var wrong atomic.Int64
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/deny") {
			wrong.Add(1)
		}
		fmt.Fprint(w, r.URL.Path)
	})
	uris := filepath.Join(t.TempDir(), "uris")
	if err := os.WriteFile(uris, []byte("http://"+server+"/a\nhttp://"+server+"/deny/x\nhttp://"+server+"/b?c=d\nhttp://"+server+"/%64eny\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const requests = 8000
	for name, arguments := range map[string][]string{"HTTP/1.1": {"--h1", "-m", "1"}, "HTTP/2": {"-m", "10"}} {
		t.Run(name, func(t *testing.T) {
			arguments = append(arguments, "-n", strconv.Itoa(requests), "-c", "8", "-i", uris)
			var out []byte
			done := make(chan error, 1)
			go func() {
				var err error
				out, err = m.Pod("mesh/client").Command(t.Context(), "h2load", arguments...).CombinedOutput()
				done <- err
			}()
			changes := 0
			for ended := false; !ended; {
				select {
				case err := <-done:
					if err != nil {
						t.Fatalf("h2load: %v\n%s", err, out)
					}
					ended = true
				default:
					apply(t, m, "AuthorizationPolicy", "other", fmt.Sprintf("{action: DENY, rules: [{to: [{operation: {paths: [/other%d]}}]}]}", changes))
					remove(t, m, "AuthorizationPolicy", "other")
					changes += 2
				}
			}
			counts, codes := loaded.FindStringSubmatch(string(out)), statuses.FindStringSubmatch(string(out))
			if counts == nil || codes == nil {
				t.Fatalf("h2load says\n%s", out)
			}
			all, half := strconv.Itoa(requests), strconv.Itoa(requests/2)
			if counts[3] != all || counts[6] != "0" || counts[7] != "0" || codes[1] != half || codes[3] != half {
				t.Errorf("h2load says\n%s", out)
			}
			if changes == 0 {
				t.Error("no policy changed meanwhile")
			}
		})
	}
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d requests that are denied reached the server", n)
	}
}
