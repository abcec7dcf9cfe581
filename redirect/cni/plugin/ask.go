package plugin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/redirect/cni"
	"github.com/tacit-mesh/tacit/redirect/enrol"
)

const (
	maxAnswer  = 4 << 20
	apiTimeout = 3 * time.Second
)

// ask sends the agent a request. An error says that the agent is away or
// cannot tell yet.
func ask(ctx context.Context, socket, path string, a *cni.Attachment) (answer cni.Answer, err error) {
	const margin = time.Second // so that the agent's own error arrives in time
	if end, ok := ctx.Deadline(); ok {
		a.Timeout = max(time.Until(end)-margin, margin)
	}
	body, err := json.Marshal(a)
	if err != nil {
		return answer, fmt.Errorf("request to the agent: %w", err)
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}
	err = fetch(ctx, transport, http.MethodPost, "http://tacit-agent"+path, "", bytes.NewReader(body), &answer)
	return answer, err
}

func fetch(ctx context.Context, transport *http.Transport, method, address, token string, body io.Reader, into any) error {
	request, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("answer of %s: %w", request.URL.Host, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", request.URL.Path, response.Status, strings.TrimSpace(string(text[:min(len(text), 512)])))
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("answer of %s: %w", request.URL.Host, err)
	}
	return nil
}

// wanted reports whether a pod is enrolled, without the agent. Where nobody
// can tell it is, and why says so: an enrolled pod must not start uncaptured.
func (p *Plugin) wanted(ctx context.Context, a *cni.Attachment) (wanted bool, why error) {
	wanted, apiErr := p.askAPI(ctx, a)
	if apiErr == nil {
		return wanted, nil
	}
	text, err := os.ReadFile(cni.EnrolledFile(p.BinDir))
	var enrolled cni.Enrolled
	if err == nil {
		err = json.Unmarshal(text, &enrolled)
	}
	if err != nil {
		return true, fmt.Errorf("nobody can tell whether the pod is enrolled: %w", errors.Join(apiErr, err))
	}
	return slices.Contains(enrolled.Namespaces, a.Namespace), apiErr
}

// askAPI reads the labels themselves.
func (p *Plugin) askAPI(ctx context.Context, a *cni.Attachment) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	api, err := readKubeconfig(cni.Kubeconfig(p.BinDir))
	if err != nil {
		return false, err
	}
	defer api.transport.CloseIdleConnections()
	var namespace, pod metav1.PartialObjectMetadata
	path := "/api/v1/namespaces/" + url.PathEscape(a.Namespace)
	if err := api.get(ctx, path, &namespace); err != nil {
		return false, err
	}
	if err := api.get(ctx, path+"/pods/"+url.PathEscape(a.Pod), &pod); err != nil {
		return false, err
	}
	return enrol.Wanted(pod.Labels, namespace.Labels), nil
}

// api is how to reach the Kubernetes API.
type api struct {
	server, token string
	transport     *http.Transport
}

func (a *api) get(ctx context.Context, path string, into any) error {
	return fetch(ctx, a.transport, http.MethodGet, a.server+path, a.token, nil, into)
}

// kubeconfig is what the agent writes of the format that kubectl reads.
type kubeconfig struct {
	Clusters []struct {
		Cluster struct {
			Server string `json:"server"`
			CA     []byte `json:"certificate-authority-data"`
			Name   string `json:"tls-server-name"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		User struct {
			Token string `json:"token"`
		} `json:"user"`
	} `json:"users"`
}

func readKubeconfig(path string) (*api, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("how to reach the API: %w", err)
	}
	var k kubeconfig
	if err := yaml.Unmarshal(text, &k); err != nil {
		return nil, fmt.Errorf("how to reach the API: %s: %w", path, err)
	}
	if len(k.Clusters) != 1 || len(k.Users) != 1 {
		return nil, fmt.Errorf("how to reach the API: %s: want one cluster and one user", path)
	}
	where, who := k.Clusters[0].Cluster, k.Users[0].User
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: where.Name}
	if len(where.CA) > 0 {
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(where.CA)
	}
	return &api{server: strings.TrimSuffix(where.Server, "/"), token: who.Token, transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}, nil
}
