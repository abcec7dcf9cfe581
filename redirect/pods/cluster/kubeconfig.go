package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tacit-mesh/tacit/internal/kube/nodeapi"
)

const (
	// pluginAccount is the service account of the CNI plugin, which may read
	// pods and namespaces and nothing else.
	pluginAccount = "tacit-cni"
	// pluginTokenLife is for how long the plugin can ask the API while there is
	// no agent. The API server may give less.
	pluginTokenLife = 24 * time.Hour
	// tokenTimeout bounds a request for a token.
	tokenTimeout = 5 * time.Second
)

// PluginAccess is how the CNI plugin reaches the API while the agent does not
// answer: by an account of its own, since the file is on the node.
type PluginAccess struct {
	Client    nodeapi.Client
	Config    *rest.Config // of the agent
	Namespace string       // of the account

	mu    sync.Mutex
	token string
	renew time.Time // when half of its life is over
}

// Kubeconfig is the file for the plugin, with a token that has half of its life
// before it.
func (p *PluginAccess) Kubeconfig() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.token == "" || time.Now().After(p.renew) {
		if err := p.newToken(); err != nil {
			return nil, err
		}
	}
	return Kubeconfig(p.Config, p.token)
}

func (p *PluginAccess) newToken() error {
	ctx, cancel := context.WithTimeout(context.Background(), tokenTimeout)
	defer cancel()
	life := int64(pluginTokenLife / time.Second)
	now := time.Now()
	made, err := p.Client.Tokens(p.Namespace).CreateToken(ctx, pluginAccount, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &life},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("token of the service account %s/%s: %w", p.Namespace, pluginAccount, explain(err, "create", "serviceaccounts/token"))
	}
	p.token, p.renew = made.Status.Token, now.Add(made.Status.ExpirationTimestamp.Sub(now)/2)
	return nil
}

// Kubeconfig is a file for a program without access to other files: how config
// reaches the API, and a token.
func Kubeconfig(config *rest.Config, token string) ([]byte, error) {
	c := rest.CopyConfig(config)
	if err := rest.LoadTLSFiles(c); err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	const name = "tacit"
	file := clientcmdapi.NewConfig()
	file.Clusters[name] = &clientcmdapi.Cluster{Server: c.Host, TLSServerName: c.ServerName, CertificateAuthorityData: c.CAData}
	file.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	file.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	file.CurrentContext = name
	return clientcmd.Write(*file)
}
