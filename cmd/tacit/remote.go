//go:build !inpod

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/sight/uses"
)

// remote asks the proxies of a cluster, by running tacit in their pods.
type remote struct {
	cluster cluster.Flags
	node    string
	demo    bool // ask the nodes of a kept demo
	// connect is Flags.Connect but in tests.
	connect func() (*cluster.Cluster, error)
}

func (r *remote) flags(f *pflag.FlagSet) {
	clusterFlags(f, &r.cluster)
	f.StringVar(&r.node, "node", "", "`name` of the one node to ask of a cluster or the demo")
	f.BoolVar(&r.demo, "demo", false, "ask the nodes of a demo of this machine that was kept (tacit demo --keep)")
}

// reach is the cluster that the flags mean; nil if the proxy behind the socket is
// meant: it is named, or there is one and no flag is about a cluster; or if a demo is.
func (r *remote) reach(cmd *cobra.Command, socket string) (*cluster.Cluster, error) {
	if r.demo {
		return nil, nil
	}
	named := slices.ContainsFunc([]string{"kubeconfig", "context", "tacit-namespace", "node"}, func(name string) bool { return cmd.Flag(name).Changed })
	if cmd.Flag("socket").Changed {
		if named {
			return nil, errors.New("--socket is about this machine's proxy, --kubeconfig, --context, --tacit-namespace and --node about a cluster's: give one or the other")
		}
		return nil, nil
	}
	if _, err := os.Stat(socket); err == nil && !named {
		return nil, nil
	}
	connect := r.connect
	if connect == nil {
		connect = r.cluster.Connect
	}
	c, err := connect()
	if errors.Is(err, cluster.ErrNoKubeconfig) && !named {
		return nil, fmt.Errorf("no proxy here: there is no socket %s, and no kubeconfig either. Name a cluster with --kubeconfig or --context, or the socket of a proxy with --socket; a demo of this machine is asked with --demo", socket)
	}
	return c, err
}

// proxies are those of a cluster or of the demo; none if the proxy behind the
// socket is meant.
func (r *remote) proxies(cmd *cobra.Command, socket string, what about) ([]answerer, error) {
	if r.demo {
		return r.proxiesOfDemo(cmd, what)
	}
	c, err := r.reach(cmd, socket)
	if c == nil || err != nil {
		return nil, err
	}
	return r.proxiesOf(cmd.Context(), c, what)
}

func (r *remote) proxiesOf(ctx context.Context, c *cluster.Cluster, what about) ([]answerer, error) {
	pods, err := c.Proxies(ctx)
	if err != nil {
		return nil, err
	}
	if pods, err = r.choose(ctx, c, pods, what); err != nil {
		return nil, err
	}
	var all []answerer
	for _, pod := range pods {
		all = append(all, answerer{node: pod.Spec.NodeName, ask: askPod(c, pod.Name), follow: followPod(c, pod.Name)})
	}
	return all, nil
}

// policyUses is what tacitd keeps in the cluster about when policies were of use;
// empty where there is none.
func (r *remote) policyUses(cmd *cobra.Command, socket string) (string, error) {
	c, err := r.reach(cmd, socket)
	if c == nil || err != nil {
		return "", err
	}
	kept, err := c.Client.CoreV1().ConfigMaps(c.Namespace).Get(cmd.Context(), uses.ConfigMap, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return kept.Data[uses.Key], nil
}

// choose leaves the proxies that a question goes to.
func (r *remote) choose(ctx context.Context, c *cluster.Cluster, pods []core.Pod, what about) ([]core.Pod, error) {
	node := r.node
	if node == "" && what.one {
		// The client's node knows best, then the server's.
		for _, end := range []string{what.from, what.to} {
			if node == "" {
				node = nodeOf(ctx, c, end)
			}
		}
	}
	for i := range pods {
		if pods[i].Spec.NodeName == node {
			return pods[i : i+1], nil
		}
	}
	switch {
	case r.node != "":
		return nil, fmt.Errorf("no proxy runs on a node %s: see kubectl -n %s get pods -o wide", r.node, c.Namespace)
	case what.one:
		return pods[:1], nil
	}
	return pods, nil
}

// nodeOf is where a pod runs that is named as NAMESPACE/POD or
// NAMESPACE/POD:PORT, "" if it is named otherwise or not found: then any proxy
// answers.
func nodeOf(ctx context.Context, c *cluster.Cluster, end string) string {
	namespace, name, isPod := strings.Cut(end, "/")
	if _, err := netip.ParseAddr(end); !isPod || err == nil {
		return ""
	}
	name, _, _ = strings.Cut(name, ":")
	pod, err := c.Client.CoreV1().Pods(namespace).Get(ctx, name, meta.GetOptions{})
	if err != nil {
		return ""
	}
	return pod.Spec.NodeName
}

func askPod(c *cluster.Cluster, pod string) func(context.Context, string, url.Values) (io.ReadCloser, error) {
	return func(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
		where := url.URL{Path: path, RawQuery: query.Encode()}
		text, err := c.Run(ctx, pod, cluster.Proxy, []string{"tacit", "ask", where.String()})
		if err != nil {
			return nil, saidIn(err)
		}
		return io.NopCloser(bytes.NewReader(text)), nil
	}
}

// followPod reads what a program in the pod says as it says it. The program
// ends with the reader: at the latest when it next says something.
func followPod(c *cluster.Cluster, pod string) func(context.Context, string, url.Values) (io.ReadCloser, error) {
	return func(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
		where := url.URL{Path: path, RawQuery: query.Encode()}
		out, in := io.Pipe()
		go func() {
			err := c.Stream(ctx, pod, cluster.Proxy, []string{"tacit", "ask", "--follow", where.String()}, in)
			in.CloseWithError(saidIn(err))
		}()
		return out, nil
	}
}

// saidIn is the error that the program in the pod told, if it did.
func saidIn(err error) error {
	var said *cluster.ExitError
	if !errors.As(err, &said) {
		return err
	}
	err = errors.New(strings.TrimPrefix(said.Error(), "tacit: "))
	if said.Code == exitAbsent {
		return absentError{error: err}
	}
	return err
}
