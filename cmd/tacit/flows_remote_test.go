//go:build !inpod

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/uses"
)

// twoNodesThatStream is twoNodes whose programs may go on saying things.
func twoNodesThatStream(sockets map[string]string) *cluster.Cluster {
	c := twoNodes(sockets)
	c.Stream = func(ctx context.Context, pod, _ string, command []string, out io.Writer) error {
		var errOut bytes.Buffer
		if code := run(ctx, command[0], append(command[1:], "--socket", sockets[pod]), out, &errOut); code != 0 {
			return &cluster.ExitError{Code: code, Stderr: strings.TrimSpace(errOut.String())}
		}
		return nil
	}
	return c
}

// A node that does not answer leaves a partial result, marked as such.
func TestFlowsOfSomeNodes(t *testing.T) {
	socket, log := flowProxy(t, "node-a")
	log.Add(denial("4bf9"))
	connect := func() (*cluster.Cluster, error) {
		return twoNodesThatStream(map[string]string{"proxy-a": socket, "proxy-b": socket + ".gone"}), nil
	}
	for output, want := range map[string]string{
		outputText: "PARTIAL: 1 of 2 nodes gave no answer: node-b.",
		outputJSON: `"partial":true,"missing":[{"node":"node-b","error":"no proxy here`,
	} {
		c, cmd, all, err := ask(t, connect, about{})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		cmd.SetOut(&out)
		c.output = output
		err = c.listFlows(cmd, all, nil)
		if !strings.Contains(out.String(), want) || !strings.Contains(out.String(), "4bf9") || err == nil || !strings.Contains(err.Error(), "node node-b: no proxy here") {
			t.Errorf("%s: %v, %s; want %s", output, err, out.String(), want)
		}
	}
	for output, want := range map[string]string{
		outputText: "PARTIAL: 1 of 2 nodes gave no answer: node-b.", outputJSON: `"partial":true`, outputPrometheus: "tacit_coverage_nodes_missing 1\n",
	} {
		c, cmd, all, err := ask(t, connect, about{})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		cmd.SetOut(&out)
		c.output = output
		if err := c.coverage(cmd, all, "", true); !strings.Contains(out.String(), want) || err == nil || !strings.Contains(err.Error(), "node node-b") {
			t.Errorf("coverage as %s: %v, %s; want %s", output, err, out.String(), want)
		}
	}
	// What all of them refuse is told once.
	connect = func() (*cluster.Cluster, error) {
		return twoNodesThatStream(map[string]string{"proxy-a": socket, "proxy-b": socket}), nil
	}
	c, cmd, all, err := ask(t, connect, about{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.listFlows(cmd, all, url.Values{"from": {"shop/aa"}}); err == nil || strings.Count(err.Error(), "did you mean") != 1 {
		t.Errorf("%v", err)
	}
}

// Without the right to read what tacitd remembers the answer is partial.
func TestCoverageWithoutTheWeek(t *testing.T) {
	socket, _ := flowProxy(t, "node-a")
	connect := func() (*cluster.Cluster, error) {
		c := twoNodesThatStream(map[string]string{"proxy-a": socket, "proxy-b": socket})
		client := c.Client.(*fake.Clientset)
		client.PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "configmaps"}, uses.ConfigMap, nil)
		})
		return c, nil
	}
	for output, want := range map[string]string{outputText: "", outputJSON: `"partial":true,"missing":[{"error":"coverage: which policies`, outputPrometheus: "tacit_coverage_nodes_missing 0\n"} {
		c, cmd, all, err := ask(t, connect, about{})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		cmd.SetOut(&out)
		c.output = output
		var lack partialError
		if err := c.coverage(cmd, all, "", false); !errors.As(err, &lack) || !strings.Contains(err.Error(), "forbidden") || !strings.Contains(out.String(), want) {
			t.Errorf("as %s: %v, %s; want %s", output, err, out.String(), want)
		}
	}
}

// The tap of a cluster shows all nodes, by way of a program in each pod, and
// goes on without one that goes.
func TestTapOfNodes(t *testing.T) {
	socketA, logA := flowProxy(t, "node-a")
	socketB, logB := flowProxy(t, "node-b")
	connect := func() (*cluster.Cluster, error) {
		return twoNodesThatStream(map[string]string{"proxy-a": socketA, "proxy-b": socketB}), nil
	}
	c, cmd, all, err := ask(t, connect, about{})
	if err != nil {
		t.Fatal(err)
	}
	gone := answerer{node: "node-c", follow: func(context.Context, string, url.Values) (io.ReadCloser, error) {
		return nil, errors.New("unreachable")
	}}
	var out, errOut bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	c.output = outputJSON
	ended := make(chan error, 1)
	go func() { ended <- c.tap(t.Context(), cmd, append(all, gone), nil, 2) }()
	for !logA.HasTaps() || !logB.HasTaps() {
		select {
		case err := <-ended:
			t.Fatal(err)
		default:
		}
	}
	logA.Add(denial("aaaa"))
	logB.Add(denial("bbbb"))
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	nodes := map[string]string{}
	for in := json.NewDecoder(&out); in.More(); {
		var f flows.Flow
		if err := in.Decode(&f); err != nil {
			t.Fatal(err)
		}
		nodes[f.Node] = f.ID
	}
	if nodes["node-a"] != "aaaa" || nodes["node-b"] != "bbbb" {
		t.Errorf("shown: %v", nodes)
	}
	if !strings.Contains(errOut.String(), "partial from here on: node node-c: unreachable") {
		t.Errorf("said: %q", errOut.String())
	}
}

// A tap that lacks flows says which remedy there is: none for those that a sample
// leaves out.
func TestTapThatLacksFlows(t *testing.T) {
	c := &client{output: outputJSON}
	cmd := tapCommand()
	var errOut bytes.Buffer
	cmd.SetErr(&errOut)
	said := answerer{node: "node-a", follow: func(context.Context, string, url.Values) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(`{"node":"node-a"}{"lost":3}{"sampled":4}`)), nil
	}}
	if err := c.tap(t.Context(), cmd, []answerer{said}, nil, 0); err == nil {
		t.Error("the end of the proxy's answer is no error")
	}
	_, after, _ := strings.Cut(errOut.String(), "3 flows of node node-a are not shown: ")
	slow, sampled, _ := strings.Cut(after, "\n")
	if !strings.Contains(slow, "Narrow the tap") || !strings.Contains(sampled, "4 more flows of node node-a are not shown: ") || strings.Contains(sampled, "Narrow") {
		t.Errorf("said: %q", errOut.String())
	}
}
