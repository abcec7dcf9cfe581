package repo

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rule forbids imports. Patterns are package paths below the module, or whole
// ones where they contain a dot; "/..." is everything below, the package
// itself included.
type rule struct {
	from    []string
	not     []string
	except  []string
	through bool // by way of other packages, too
	reason  string
}

var rules = []rule{
	{
		from: []string{"xds/model/..."}, not: []string{"..."}, except: []string{"xds/model/..."}, through: true,
		reason: "the model is pure values that everything else translates to and from",
	},
	{
		from: []string{"proxy/..."}, through: true,
		not:    []string{"k8s.io/client-go/...", "k8s.io/api/...", "istio.io/client-go/..."},
		reason: "the proxy learns about the world over xDS and from the agent alone: a Kubernetes client would need credentials next to hostile bytes",
	},
	{
		from: []string{"proxy/..."}, through: true,
		not:    []string{"github.com/envoyproxy/go-control-plane/pkg/server/...", "github.com/envoyproxy/go-control-plane/pkg/cache/...", "xds/client/...", "xds/server/...", "xds/build/...", "xds/source/...", "xds/wire/..."},
		reason: "the data plane reads snapshots; where they come from is wired in cmd, so that another control plane changes nothing here",
	},
	{
		from: []string{"proxy/..."}, not: []string{"redirect/..."}, except: []string{"redirect/handoff/protocol/..."}, through: true,
		reason: "the proxy has no privileges: whatever enters namespaces or writes rules is the agent's, and only their protocol is shared",
	},
	{
		from: []string{"xds/..."}, not: []string{"proxy/...", "redirect/..."}, through: true,
		reason: "the control plane must not depend on how a node carries out what it says",
	},
	{
		from: []string{"redirect/..."}, not: []string{"proxy/...", "xds/..."}, except: []string{"xds/model/..."}, through: true,
		reason: "the agent is privileged and must stay small: it parses no traffic and no control plane",
	},
	{
		from: []string{"cmd/tacit-agent"}, not: []string{"k8s.io/client-go/kubernetes/...", "k8s.io/client-go/informers/..."}, through: true,
		reason: "client-go's clientset has every kind of the API, and what is linked into the agent is memory of every node: internal/kube/nodeapi has what it needs",
	},
	{
		from: []string{"..."}, not: []string{"k8s.io/client-go/..."},
		except: []string{"internal/kube/...", "xds/source/...", "redirect/pods/...", "identity/nodeauth/...", "identity/person/...", "deploy/...", "cmd/...", "test/..."},
		reason: "client-go belongs to where cluster objects come from, and to what installs",
	},
	{
		from: []string{"..."}, except: []string{"redirect/...", "test/..."}, not: []string{"github.com/vishvananda/netlink/..."},
		reason: "links, addresses and routes are the agent's business, and the test world's",
	},
	{
		from: []string{"..."}, except: []string{"proxy/dns/...", "test/..."}, not: []string{"github.com/miekg/dns/..."},
		reason: "DNS messages come from pods: one place parses them, within bounds",
	},
	{
		from: []string{"..."}, not: []string{"github.com/prometheus/client_golang/..."},
		except: []string{"proxy/telemetry/...", "xds/telemetry/...", "redirect/telemetry/...", "identity/telemetry/...", "cmd/..."},
		reason: "one place per program knows the metrics' names; everybody else reports what happened to it",
	},
	{
		from: []string{"..."}, except: []string{"cmd/...", "perf/...", "test/..."}, not: []string{"test/...", "perf/..."},
		reason: "products do not depend on their tests",
	},
}

// exceptFrom tells the two uses of except apart: of importers when the rule is
// for everybody, of imported packages otherwise.
func (r rule) exceptFrom() bool { return slices.Equal(r.from, []string{"..."}) }

func (r rule) covers(pkg string) bool {
	return matches(r.from, pkg) && (!r.exceptFrom() || !matches(r.except, pkg))
}

func (r rule) forbids(pkg string) bool {
	return matches(r.not, pkg) && (r.exceptFrom() || !matches(r.except, pkg))
}

func matches(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if p == "..." {
			return pkg == module || strings.HasPrefix(pkg, module+"/")
		}
		if !strings.Contains(strings.Split(p, "/")[0], ".") {
			p = module + "/" + p
		}
		p = strings.TrimSuffix(p, "/...")
		return pkg == p || strings.HasPrefix(pkg, p+"/")
	})
}

func TestImports(t *testing.T) {
	graph := imports(t)
	if len(graph[module+"/xds/model"]) == 0 {
		t.Fatal("go list does not even know xds/model")
	}
	for _, r := range rules {
		for pkg := range graph {
			if !matches([]string{"..."}, pkg) || !r.covers(pkg) {
				continue
			}
			if chain := r.broken(graph, pkg); chain != nil {
				t.Errorf("%s must not import %s:\n\t%s\nbecause %s", pkg, chain[len(chain)-1], strings.Join(chain, "\n\t→ "), r.reason)
			}
		}
	}
}

// broken finds the shortest chain of imports that breaks the rule.
func (r rule) broken(graph map[string][]string, pkg string) []string {
	chains := [][]string{{pkg}}
	seen := map[string]bool{pkg: true}
	for len(chains) > 0 {
		chain := chains[0]
		chains = chains[1:]
		for _, next := range graph[chain[len(chain)-1]] {
			longer := append(slices.Clone(chain), next)
			if r.forbids(next) {
				return longer
			}
			if r.through && !seen[next] {
				seen[next] = true
				chains = append(chains, longer)
			}
		}
	}
	return nil
}

// imports is the graph of all packages of the module and what they need, tests
// left out.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Imports", module+"/...")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	graph := map[string][]string{}
	for decoder := json.NewDecoder(stdout); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		graph[p.ImportPath] = p.Imports
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return graph
}

// The rules themselves are tested, as a pattern with a slip forbids nothing.
func TestRules(t *testing.T) {
	graph := map[string][]string{
		module + "/proxy":                     {module + "/proxy/sockets", module + "/redirect/handoff/protocol"},
		module + "/proxy/sockets":             {"fmt", module + "/redirect/netns"},
		module + "/redirect/netns":            {"github.com/vishvananda/netlink"},
		module + "/xds/source/kube":           {"k8s.io/client-go/informers"},
		module + "/proxy/policy":              {"k8s.io/client-go/informers"},
		module + "/proxy/telemetry":           {"github.com/prometheus/client_golang/prometheus"},
		module + "/proxy/conns":               {"github.com/prometheus/client_golang/prometheus", module + "/proxy/telemetry"},
		module + "/redirect/handoff":          {module + "/xds/model", module + "/redirect/handoff/protocol"},
		module + "/xds/model":                 {"fmt"},
		module + "/redirect/modelx":           {module + "/xds/modelx"},
		module + "/redirect/handoff/protocol": nil,
	}
	want := map[string]int{ // broken rules by package
		"proxy": 1, "proxy/sockets": 1, "redirect/netns": 0, "xds/source/kube": 0, "proxy/policy": 2,
		"proxy/telemetry": 0, "proxy/conns": 1, "redirect/handoff": 0, "xds/model": 0, "redirect/modelx": 1,
	}
	for pkg, n := range want {
		got := 0
		for _, r := range rules {
			if r.covers(module+"/"+pkg) && r.broken(graph, module+"/"+pkg) != nil {
				got++
			}
		}
		if got != n {
			t.Errorf("%s breaks %d rules, want %d", pkg, got, n)
		}
	}
}
