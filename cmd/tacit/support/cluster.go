//go:build !inpod

package support

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strconv"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tacit-mesh/tacit/deploy/check"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/xds/kinds"
)

// kind is one of objects to pack.
type kind struct {
	version, resource string
	ours              bool // those in Tacit's namespace alone
	options           meta.ListOptions
}

// objects to pack. Secrets are not among them: nobody needs to read one for this.
var objects = []kind{
	{version: "v1", resource: "pods", ours: true},
	{version: "v1", resource: "services", ours: true},
	{version: "v1", resource: "configmaps", ours: true},
	{version: "v1", resource: "serviceaccounts", ours: true},
	{version: "v1", resource: "events", ours: true},
	{version: "apps/v1", resource: "deployments", ours: true},
	{version: "apps/v1", resource: "daemonsets", ours: true},
	{version: "networking.k8s.io/v1", resource: "networkpolicies", ours: true},
	{version: "coordination.k8s.io/v1", resource: "leases", ours: true},
	{version: "rbac.authorization.k8s.io/v1", resource: "roles", ours: true},
	{version: "rbac.authorization.k8s.io/v1", resource: "rolebindings", ours: true},
	{version: "rbac.authorization.k8s.io/v1", resource: "clusterroles", options: meta.ListOptions{LabelSelector: "app.kubernetes.io/part-of=tacit"}},
	{version: "rbac.authorization.k8s.io/v1", resource: "clusterrolebindings", options: meta.ListOptions{LabelSelector: "app.kubernetes.io/part-of=tacit"}},
	{version: "v1", resource: "nodes"},
	{version: "v1", resource: "namespaces"},
	{version: "security.istio.io/v1", resource: "authorizationpolicies"},
	{version: "security.istio.io/v1", resource: "peerauthentications"},
	{version: "security.istio.io/v1", resource: "requestauthentications"},
	{version: bypass.Version, resource: "ratelimits"},
	{version: bypass.Version, resource: bypass.Resource},
	{version: kinds.RevokedIdentityVersion, resource: "revokedidentities"},
}

// Resources are those that Cluster reads.
func Resources() (all []schema.GroupVersionResource) {
	for _, k := range objects {
		version, _ := schema.ParseGroupVersion(k.version) // constants
		all = append(all, version.WithResource(k.resource))
	}
	return all
}

// The events that agents tell of pods anywhere.
var told = kind{version: "v1", resource: "events", options: meta.ListOptions{FieldSelector: "source=" + cluster.Agent}}

// metricsPorts are where the programs tell their metrics, in their pods.
var metricsPorts = map[string]int{cluster.Control: 15014, cluster.Proxy: 15020, cluster.Agent: 15013}

// Cluster lists what there is of an installation on Kubernetes, but for what its
// proxies say themselves. LogLines are those to keep of each container.
func Cluster(ctx context.Context, c *cluster.Cluster, logLines int64) ([]Part, error) {
	pods, err := c.Client.CoreV1().Pods(c.Namespace).List(ctx, meta.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the pods of namespace %s: %w", c.Namespace, err)
	}
	parts := []Part{
		{Name: "cluster/version.json", Read: func(context.Context) (io.ReadCloser, error) {
			v, err := c.Client.Discovery().ServerVersion()
			return encoded(v, err)
		}},
		{Name: "cluster/check.json", Read: func(ctx context.Context) (io.ReadCloser, error) {
			report, err := check.Run(ctx, c)
			return encoded(report, err)
		}},
		objectsPart(c, told, "cluster/events-of-agents.json"),
	}
	for _, k := range objects {
		parts = append(parts, objectsPart(c, k, "cluster/"+k.resource+".json"))
	}
	for i := range pods.Items {
		parts = append(parts, podParts(c, &pods.Items[i], logLines)...)
	}
	return parts, nil
}

func encoded(value any, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(value)
	return io.NopCloser(bytes.NewReader(text)), err
}

// pageSize is how many objects are read at a time.
const pageSize = 500

func objectsPart(c *cluster.Cluster, k kind, name string) Part {
	return Part{Name: name, Read: func(ctx context.Context) (io.ReadCloser, error) {
		version, _ := schema.ParseGroupVersion(k.version) // a constant
		in := ""
		if k.ours {
			in = c.Namespace
		}
		items, size := []any{}, 0
		for options := k.options; ; {
			options.Limit = pageSize
			page, err := c.Dynamic.Resource(version.WithResource(k.resource)).Namespace(in).List(ctx, options)
			if apierrors.IsNotFound(err) {
				return encoded(map[string]any{"items": items, "note": "the cluster does not know this kind"}, nil)
			}
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", k.resource, err)
			}
			for _, item := range page.Items {
				// The whole is bounded here, where it can be cut between two of them.
				text, err := json.Marshal(Object(item.Object))
				if size += len(text) + len(","); err == nil && size > maxPart-1<<10 {
					whole, err := encoded(map[string]any{"items": items, "note": "cut here: there are more"}, nil)
					return shortened{whole}, err
				}
				if err != nil {
					return nil, fmt.Errorf("write %s %s: %w", k.resource, item.GetName(), err)
				}
				items = append(items, json.RawMessage(text))
			}
			if options.Continue = page.GetContinue(); options.Continue == "" {
				return encoded(map[string]any{"items": items}, nil)
			}
		}
	}}
}

// podParts are a pod's logs, metrics and, of an agent, what it sees of its node.
func podParts(c *cluster.Cluster, pod *core.Pod, logLines int64) (parts []Part) {
	folder := path.Join("pods", pod.Name)
	for _, status := range pod.Status.ContainerStatuses {
		parts = append(parts, logPart(c, pod.Name, status.Name, path.Join(folder, status.Name+".log"), logLines, false))
		if status.RestartCount > 0 {
			parts = append(parts, logPart(c, pod.Name, status.Name, path.Join(folder, status.Name+".before.log"), logLines, true))
		}
	}
	if pod.Status.Phase != core.PodRunning {
		return parts
	}
	program := pod.Labels["app.kubernetes.io/name"]
	if port, ok := metricsPorts[program]; ok {
		parts = append(parts, Part{Name: path.Join(folder, "metrics.txt"), Read: func(ctx context.Context) (io.ReadCloser, error) {
			return metrics(ctx, c, pod.Name, port)
		}})
	}
	if program == cluster.Agent {
		parts = append(parts, Part{Name: path.Join(folder, "facts.json"), Read: func(ctx context.Context) (io.ReadCloser, error) {
			text, err := c.Run(ctx, pod.Name, cluster.Agent, []string{cluster.Agent, "facts"})
			return io.NopCloser(bytes.NewReader(text)), err
		}})
	}
	return parts
}

func logPart(c *cluster.Cluster, pod, container, name string, lines int64, previous bool) Part {
	return Part{Name: name, Tail: true, Read: func(ctx context.Context) (io.ReadCloser, error) {
		return c.Client.CoreV1().Pods(c.Namespace).GetLogs(pod, &core.PodLogOptions{Container: container, TailLines: &lines, Previous: previous}).Stream(ctx)
	}}
}

// metrics reads those of a pod through a port of this machine, as the API server
// itself may have no way to the pod.
func metrics(ctx context.Context, c *cluster.Cluster, pod string, port int) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	local, ended, err := c.Forward(ctx, pod, 0, port)
	if err != nil {
		cancel()
		return nil, err
	}
	body, err := Get(ctx, "http://"+net.JoinHostPort("127.0.0.1", strconv.Itoa(local))+"/metrics")
	if err != nil {
		cancel()
		<-ended //nolint:errcheck // it was ended here
		return nil, err
	}
	return &closing{ReadCloser: body, also: func() {
		cancel()
		<-ended //nolint:errcheck // it was ended here
	}}, nil
}

// closing does something else, too, when it is closed.
type closing struct {
	io.ReadCloser
	also func()
}

func (c *closing) Close() error {
	err := c.ReadCloser.Close()
	c.also()
	return err
}

// Get asks for a page, such as one of metrics.
func Get(ctx context.Context, where string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, err
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("%s answers %s", where, response.Status), response.Body.Close())
	}
	return response.Body, nil
}
