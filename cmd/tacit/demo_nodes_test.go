//go:build !inpod

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

// The nodes of a kept demo are asked as those of a cluster are.
func TestNodesOfADemo(t *testing.T) {
	dir := t.TempDir()
	inside := func(path string) string { return filepath.Join(dir, path) }
	for _, node := range []string{"a", "b"} {
		proxy := inside("/run/tacit/w1/nodes/" + node + "/proxy")
		if err := os.MkdirAll(proxy, 0o700); err != nil {
			t.Fatal(err)
		}
		socket := serve(t, map[string]any{
			"/status": admin.Status{Node: node},
			"/dump":   map[string]any{"workloads": []map[string]string{{"namespace": "shop", "name": "worker", "node": "b"}}},
		})
		if err := os.Symlink(socket, filepath.Join(proxy, "admin0.sock")); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		node string
		what about
		want string
	}{
		{"", about{}, "a b"},
		{"b", about{}, "b"},
		{"", about{from: "203.0.113.1", to: "shop/worker:80", one: true}, "b"},
		{"", about{from: "shop/nobody", one: true}, "a"},
	} {
		r := remote{node: test.node}
		all, err := r.proxiesIn(t.Context(), inside, test.what)
		var got []string
		for _, a := range all {
			body, askErr := a.ask(t.Context(), "/status", nil)
			if askErr != nil {
				t.Fatal(askErr)
			}
			var status admin.Status
			if err := a.read(body, &status); err != nil || status.Node != a.node {
				t.Errorf("node %q answers as %q, %v", a.node, status.Node, err)
			}
			_ = body.Close()
			got = append(got, a.node)
		}
		if strings.Join(got, " ") != test.want || err != nil {
			t.Errorf("--node %q about %+v: %v, %v; want %s", test.node, test.what, got, err, test.want)
		}
	}
	for _, log := range []string{"proxy-a.log", "tacitd.log", "shop_web-nginx.log"} {
		if err := os.MkdirAll(inside("/run/tacit/w1/logs"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(inside("/run/tacit/w1/logs"), log), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	logs, err := new(supportFlags).logsOfDemo(inside)
	for _, part := range logs {
		names = append(names, part.Name)
	}
	if got := strings.Join(names, " "); got != "logs/tacitd.log logs/proxy-a.log" || err != nil {
		t.Errorf("logs for support: %s, %v", got, err)
	}
	if _, err := (&remote{node: "c"}).proxiesIn(t.Context(), inside, about{}); err == nil || !strings.Contains(err.Error(), "no node c") {
		t.Errorf("of a node that there is not: %v", err)
	}
	if code, _, errOut := tacit("status", "--demo", "--context", "x"); code != 1 || !strings.Contains(errOut, "give one or the other") {
		t.Errorf("--demo with --context: %d, %s", code, errOut)
	}
}

// A word that no command is says so, and does not pass for a wish for help.
func TestWrongWords(t *testing.T) {
	for args, want := range map[string]string{
		"identity revok x": `unknown command "revok" for "tacit identity" (see tacit identity --help)`,
		"bypass":           "want tacit bypass NAMESPACE[/POD] --for DURATION --reason TEXT [flags] (see tacit bypass --help)",
		"audit verify":     "want tacit audit verify FILE... [flags] (see tacit audit verify --help)",
	} {
		if code, out, errOut := tacit(strings.Fields(args)...); code != 1 || out != "" || !strings.Contains(errOut, want) {
			t.Errorf("%s: exit %d, %q, %q; want %q", args, code, out, errOut, want)
		}
	}
	if code, out, _ := tacit("identity"); code != 0 || !strings.Contains(out, "Available Commands:") {
		t.Errorf("identity: exit %d, %q", code, out)
	}
	root := command()
	for _, cmd := range root.Commands() {
		if apart := map[string]bool{"version": true, exitHelp().Name(): true}; cmd.GroupID == "" && !cmd.Hidden && !apart[cmd.Name()] {
			t.Errorf("%s is in no group of the help", cmd.Name())
		}
	}
}
