//go:build !inpod

package main

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/xds/model"
)

func runningPod(namespace, name, node string, age time.Duration) *core.Pod {
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{
			Namespace: namespace, Name: name, Labels: map[string]string{"app.kubernetes.io/name": cluster.Proxy},
			CreationTimestamp: meta.NewTime(time.Unix(1e9, 0).Add(-age)),
		},
		Spec:   core.PodSpec{NodeName: node},
		Status: core.PodStatus{Phase: core.PodRunning},
	}
}

// twoNodes is a cluster of which each pod's tacit asks the socket of that pod:
// the program itself, but for the API server in between.
func twoNodes(sockets map[string]string) *cluster.Cluster {
	objects := []runtime.Object{
		runningPod("tacit-system", "proxy-a", "node-a", 0), runningPod("tacit-system", "proxy-b", "node-b", 0),
		runningPod("tacit-system", "draining", "node-b", time.Hour), // an older one on the same node
		runningPod("shop", "a", "node-a", 0), runningPod("shop", "b", "node-b", 0),
	}
	return &cluster.Cluster{
		Namespace: "tacit-system", Client: fake.NewClientset(objects...),
		Run: func(ctx context.Context, pod, container string, command []string) ([]byte, error) {
			var out, errOut bytes.Buffer
			code := run(ctx, command[0], append(command[1:], "--socket", sockets[pod]), &out, &errOut)
			if container != cluster.Proxy || command[0] != "tacit" || code != 0 {
				return out.Bytes(), &cluster.ExitError{Code: code, Stderr: strings.TrimSpace(errOut.String())}
			}
			return out.Bytes(), nil
		},
	}
}

// ask makes a client with flags as given, and the proxies that it would ask.
func ask(t *testing.T, connect func() (*cluster.Cluster, error), what about, args ...string) (*client, *cobra.Command, []answerer, error) {
	t.Helper()
	c := &client{remote: remote{connect: connect}}
	cmd := &cobra.Command{}
	c.flags(cmd)
	cmd.SetContext(t.Context())
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	all, err := c.proxies(cmd, what)
	return c, cmd, all, err
}

func TestWhichProxiesAreAsked(t *testing.T) {
	connect := func() (*cluster.Cluster, error) { return twoNodes(nil), nil }
	socket := serve(t, nil)
	for _, test := range []struct {
		name, args string
		about      about
		nodes      []string // "" is the socket
		err        string
	}{
		{name: "no proxy here", args: "", nodes: []string{"node-a", "node-b"}},
		{name: "one of a cluster", args: "--node node-b", nodes: []string{"node-b"}},
		{name: "of no node", args: "--node node-c", err: "no proxy runs on a node node-c"},
		{name: "the socket", args: "--socket " + socket, nodes: []string{""}},
		{name: "both", args: "--socket " + socket + " --context prod", err: "give one or the other"},
		{name: "the socket and a namespace", args: "--socket " + socket + " --tacit-namespace mesh", err: "give one or the other"},
		{name: "by the client", about: about{from: "shop/b", to: "shop/a:80", one: true}, nodes: []string{"node-b"}},
		{name: "by the server", about: about{from: "203.0.113.9", to: "shop/b:80", one: true}, nodes: []string{"node-b"}},
		{name: "anyone", about: about{from: "shop/none", to: "a.shop:80", one: true}, nodes: []string{"node-a"}},
		{name: "form", args: "-o toml", err: "want text, json or yaml"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, all, err := ask(t, connect, test.about, strings.Fields(test.args)...)
			var nodes []string
			for _, a := range all {
				nodes = append(nodes, a.node)
			}
			if !slices.Equal(nodes, test.nodes) || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("asks %q, error %v; want %q, %q", nodes, err, test.nodes, test.err)
			}
		})
	}
	t.Run("no kubeconfig", func(t *testing.T) {
		none := func() (*cluster.Cluster, error) { return nil, cluster.ErrNoKubeconfig }
		if _, _, _, err := ask(t, none, about{}); err == nil || !strings.Contains(err.Error(), "--kubeconfig or --context, or the socket") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("not installed", func(t *testing.T) {
		empty := func() (*cluster.Cluster, error) {
			return &cluster.Cluster{Namespace: "tacit-system", Client: fake.NewClientset()}, nil
		}
		if _, _, _, err := ask(t, empty, about{}); err == nil || !strings.Contains(err.Error(), "tacit install") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAnswersOfAllNodes(t *testing.T) {
	at := func(second int64) time.Time { return time.Unix(second, 0).UTC() }
	explanation := func(o admin.Outcome) admin.Explanation { return admin.Explanation{Outcome: o, Summary: "Because."} }
	sockets := map[string]string{
		"proxy-a": serve(t, map[string]any{
			"/status": admin.Status{Node: "node-a", Generation: 7, AddressesReady: true, PoliciesReady: true},
			"/connections": connections{Connections: []admin.Connection{
				{ID: "one", Direction: admin.Outbound, Since: at(5)}, {ID: "two", Direction: admin.Outbound, Since: at(9)},
			}},
			"/explain?id=one": explanation(admin.Denied),
		}),
		"proxy-b": serve(t, map[string]any{
			"/status":         admin.Status{Node: "node-b", Generation: 8, AddressesReady: true},
			"/connections":    connections{Connections: []admin.Connection{{ID: "one", Direction: admin.Inbound, Since: at(6)}}},
			"/explain?id=two": explanation(admin.Allowed),
		}),
	}
	c, cmd, all, err := ask(t, func() (*cluster.Cluster, error) { return twoNodes(sockets), nil }, about{})
	if err != nil {
		t.Fatal(err)
	}
	id := func(id string) url.Values { return url.Values{"id": {id}} }
	for _, test := range []struct {
		name, output string
		do           func() error
		want         []string // in this order
		err          string
	}{
		{"status", outputText, func() error { return c.statusOfAll(cmd, all) },
			[]string{"NODE", "node-a", " 7 ", "serving", "node-b", " 8 ", "no full list of policies yet"}, ""},
		{"status", outputJSON, func() error { return c.statusOfAll(cmd, all) },
			[]string{`{"nodes":[{`, `"node":"node-a"`, `"node":"node-b"`, "]}\n"}, ""},
		{"connections", outputText, func() error { return c.connectionsOfAll(cmd, all, nil) },
			[]string{"one  outbound", "one  inbound", "two  outbound"}, ""},
		{"connections", outputJSON, func() error { return c.connectionsOfAll(cmd, all, nil) },
			[]string{`{"connections":[{"id":"one"`, `"inbound"`, `"id":"two"`}, ""},
		{"of some nodes", outputText, func() error { return c.connectionsOfAll(cmd, all, url.Values{"ended": {""}}) },
			[]string{"No such connections."}, "node node-a: asked for /connections?ended="},
		{"explain", outputText, func() error { return c.explainByAll(cmd, all, id("one")) },
			[]string{"node node-a\n", "DENIED  Because."}, "exit status 3"},
		{"explain", outputJSON, func() error { return c.explainByAll(cmd, all, id("two")) },
			[]string{`{"nodes":[{`, `"outcome":"allowed"`}, ""},
		{"explain nothing", outputText, func() error { return c.explainByAll(cmd, all, id("three")) },
			nil, "node node-b: asked for /explain?id=three"},
	} {
		t.Run(test.name+" "+test.output, func(t *testing.T) {
			var out bytes.Buffer
			cmd.SetOut(&out)
			c.output = test.output
			err := test.do()
			rest := out.String()
			for _, want := range test.want {
				_, after, found := strings.Cut(rest, want)
				if !found {
					t.Fatalf("no %q, in this order, in\n%s", want, out.String())
				}
				rest = after
			}
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v, want %q", err, test.err)
			}
			var code exitError
			if errors.As(err, &code) && int(code) != exitFound {
				t.Errorf("exit status %d", code)
			}
		})
	}
}

// A line of the log is explained by the mesh of any node, and what other nodes
// may have known and did not say is said.
func TestExplainLineOfNodes(t *testing.T) {
	whole := serveAdmin(t, admin.Server{
		Node: "node-a", Snapshot: guarded, Export: func() ([]byte, error) { return exportOf(t, guarded(), true), nil },
		Find: func(string) []admin.Connection { return nil },
	})
	older := serveAdmin(t, admin.Server{
		Node: "node-a", Snapshot: guarded, Export: func() ([]byte, error) { return nil, nil },
		Find: func(string) []admin.Connection { return nil },
	})
	away := filepath.Join(t.TempDir(), "gone.sock")
	id := "4bf92f3577b34da6a3ce929d0e0e4736"
	allowed := `{"id":"` + id + `","direction":"inbound","outcome":"ok","src.addr":"198.18.1.1:40000","src.workload":"a","src.namespace":"shop",` +
		`"src.identity":"spiffe://cluster.local/ns/shop/sa/a","dst.addr":"198.18.1.2:80","dst.workload":"b","dst.namespace":"shop"}`
	for _, test := range []struct {
		name, a, b   string
		code         int
		want, errOut string
	}{
		{"all answer", whole, whole, 0, "ALLOWED", "not read of the dump of the proxy of node node-a"},
		{"the second is away", whole, away, exitPartial, "ALLOWED", "node node-b: no proxy here"},
		{"the first is away", away, whole, exitPartial, "ALLOWED", "node node-a: no proxy here"},
		{"an older one", older, whole, exitPartial, "ALLOWED", "of node node-a has no mesh for programs"},
		{"older ones", older, older, exitFailed, "", "of node node-b has no mesh for programs"},
		{"an older one and none", older, away, exitFailed, "", "node node-b: no proxy here"},
		{"none", away, away, exitFailed, "", "node node-a: no proxy here"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &explainFlags{}
			f.remote.connect = func() (*cluster.Cluster, error) {
				return twoNodes(map[string]string{"proxy-a": test.a, "proxy-b": test.b}), nil
			}
			cmd := &cobra.Command{SilenceErrors: true, SilenceUsage: true, RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, []string{allowed}) }}
			f.flags(cmd)
			var out, errOut bytes.Buffer
			cmd.SetArgs([]string{})
			code := execute(t.Context(), cmd, &out, &errOut)
			if code != test.code || !strings.Contains(out.String(), test.want) || test.want == "" && out.Len() > 0 || !strings.Contains(errOut.String(), test.errOut) {
				t.Errorf("exit %d, %q, %q; want %d, %q, %q", code, out.String(), errOut.String(), test.code, test.want, test.errOut)
			}
		})
	}
}

// What the other end's node alone knows of its certificate is asked there; while that
// gives no answer, the answer is partial.
func TestExplainPairOfNodes(t *testing.T) {
	twoNodeMesh := func() *model.Snapshot {
		u := model.Update{}
		for _, name := range []string{"a", "b"} {
			w := *mesh().Workload("Kubernetes//Pod/shop/" + name)
			w.Node = "node-" + name
			u.Workloads = append(u.Workloads, &w)
		}
		return mesh().Apply(u)
	}
	proxyOf := func(node, account string) string {
		return serveAdmin(t, admin.Server{Node: node, Snapshot: twoNodeMesh, Certificates: func() []admin.Certificate {
			return []admin.Certificate{{
				Identity: "spiffe://cluster.local/ns/shop/sa/" + account, Serial: "serial-" + account, Issuer: "CN=root",
				NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), Chain: [][]byte{{1}},
			}}
		}})
	}
	a, b, other := proxyOf("node-a", "a"), proxyOf("node-b", "b"), proxyOf("node-b", "other")
	away := filepath.Join(t.TempDir(), "gone.sock")
	for _, test := range []struct {
		name, b, args string
		code          int
		want, errOut  string
	}{
		{"both have one", b, "", 0, "Pod shop/b proves its identity by certificate serial-b of CN=root", ""},
		{"the server has none", other, "", exitFound, "Pod shop/b cannot prove its identity: there is no certificate yet", ""},
		{"for programs", other, "-o json", exitFound, `"summary":"No mutual TLS: pod shop/b has no valid certificate."`, ""},
		{"the server's node is away", away, "", exitPartial, "That of pod shop/b is node node-b's to show", "certificates of node node-b: no proxy here"},
		{"one node alone", b, "--node node-a", 0, "That of pod shop/b is node node-b's to show", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &explainFlags{}
			f.remote.connect = func() (*cluster.Cluster, error) {
				return twoNodes(map[string]string{"proxy-a": a, "proxy-b": test.b}), nil
			}
			cmd := &cobra.Command{SilenceErrors: true, SilenceUsage: true, RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, nil) }}
			f.flags(cmd)
			cmd.Flags().StringVar(&f.from, "from", "shop/a", "")
			cmd.Flags().StringVar(&f.to, "to", "shop/b:80", "")
			var out, errOut bytes.Buffer
			cmd.SetArgs(strings.Fields(test.args))
			code := execute(t.Context(), cmd, &out, &errOut)
			if code != test.code || !strings.Contains(out.String(), test.want) || !strings.Contains(out.String(), "serial-a") || !strings.Contains(errOut.String(), test.errOut) {
				t.Errorf("exit %d, %q, %q; want %d, %q, %q", code, out.String(), errOut.String(), test.code, test.want, test.errOut)
			}
		})
	}
}
