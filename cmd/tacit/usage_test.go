//go:build !inpod

package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/proxy/admin"
)

// Each command has a manual page, and so has each page of help.
func TestManualPages(t *testing.T) {
	dir := t.TempDir()
	if code, out, errOut := tacit("man", "--dir", dir); code != 0 || out+errOut != "" {
		t.Fatalf("exit %d, %s%s", code, out, errOut)
	}
	var want []string
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" {
			return
		}
		want = append(want, strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1")
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(command())
	for _, name := range want {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, part := range []string{".TH", ".SH NAME", ".SH DESCRIPTION"} {
			if !strings.Contains(string(text), part) {
				t.Errorf("%s has no %s", name, part)
			}
		}
	}
	if len(want) < 30 || !slices.Contains(want, "tacit-exit-codes.1") {
		t.Errorf("%d pages: %v", len(want), want)
	}
}

// The page on exit codes names each, and each command that says more than yes or
// no points to what it means.
func TestExitCodes(t *testing.T) {
	code, out, _ := tacit("help", "exit-codes")
	if code != 0 {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{"    0  ", "    1  ", "    3  ", "    4  ", "explain", "replay", "check", "lint"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	sockets := map[string]string{"proxy-a": serve(t, map[string]any{
		"/status": admin.Status{Node: "node-a"}, "/connections": connections{}, "/certificates": certificates{},
		"/flows?limit=1000&since=5m0s": admin.Flows{}, "/coverage": admin.Coverage{Node: "node-a"},
	}), "proxy-b": filepath.Join(t.TempDir(), "none")}
	// Of two nodes one gives no answer: all commands say that alike.
	c, cmd, all, err := ask(t, func() (*cluster.Cluster, error) { return twoNodes(sockets), nil }, about{})
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"status": c.statusOfAll(cmd, all), "connections": c.connectionsOfAll(cmd, all, nil), "certs": c.certificatesOfAll(cmd, all),
		"flows": c.listFlows(cmd, all, map[string][]string{"limit": {"1000"}, "since": {"5m0s"}}), "top": lookAt(cmd, all).lack,
	} {
		var lack partialError
		if !errors.As(err, &lack) || !strings.Contains(err.Error(), "node-b") {
			t.Errorf("%s: %v, want that it is partial for node-b", name, err)
		}
	}
	for _, test := range []struct {
		err, lack error
		found     bool
		want      int
	}{
		{nil, nil, false, 0}, {nil, nil, true, exitFound}, {nil, partialError{errors.New("x")}, true, exitFound},
		{nil, partialError{errors.New("x")}, false, exitPartial}, {errors.New("x"), nil, true, exitFailed},
	} {
		root := &cobra.Command{RunE: func(cmd *cobra.Command, _ []string) error { return ended(cmd, test.err, test.lack, test.found) }, SilenceErrors: true, SilenceUsage: true}
		root.SetArgs(nil)
		var out strings.Builder
		if code := execute(t.Context(), root, &out, &out); code != test.want {
			t.Errorf("%+v: exit %d", test, code)
		}
	}
}

// A shell offers namespaces, then their pods.
func TestCompletion(t *testing.T) {
	socket := serveAdmin(t, admin.Server{Node: "node-a", Snapshot: mesh})
	for args, want := range map[string]string{
		"flows --socket " + socket + " sh":            "shop/\n:6\n",
		"tap --socket " + socket + " shop/":           "shop/a\nshop/b\n:4\n",
		"explain --socket " + socket + " --to shop/b": "shop/b\n:4\n",
		"flows --socket " + socket + "x sh":           ":6\n", // nobody to ask
	} {
		if _, out, _ := tacit(append([]string{"__complete"}, strings.Fields(args)...)...); out != want {
			t.Errorf("%s: %q, want %q", args, out, want)
		}
	}
	r := newSuspensions(func() (*cluster.Cluster, error) { return twoNodes(nil), nil })
	if got := r.pods(t.Context(), nil); !slices.Contains(got, "shop/a") || !slices.Contains(got, "tacit-system/proxy-b") {
		t.Errorf("of the cluster: %v", got)
	}
	none := newSuspensions(func() (*cluster.Cluster, error) { return nil, cluster.ErrNoKubeconfig })
	if got := none.pods(t.Context(), nil); got != nil {
		t.Errorf("of no cluster: %v", got)
	}
}
