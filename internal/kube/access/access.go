// Package access says how the programs reach the Kubernetes API.
//
// What does not belong here: what is read from there or written, and any of
// client-go that not all of the programs need.
package access

import (
	"fmt"
	"net/http"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/tacit-mesh/tacit/internal/version"
)

// The bounds of client-go's own queue: requests beyond them wait. Watches
// count once, when they begin.
const (
	requestsPerSecond = 50
	burst             = 100
)

// Config is how to reach the API: by a kubeconfig file with its current
// context, or, where that is "", as the pod that the program runs in.
func Config(kubeconfig string) (*rest.Config, error) {
	config, err := load(kubeconfig)
	if err != nil {
		return nil, err
	}
	config.UserAgent = "tacit/" + version.String()
	config.QPS, config.Burst = requestsPerSecond, burst
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return explaining{next} })
	return config, nil
}

func load(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("reach the Kubernetes API as the pod that this runs in: %w (outside a cluster, name a file with --kubeconfig)", err)
		}
		return config, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reach the Kubernetes API by %s: %w", kubeconfig, err)
	}
	return config, nil
}
