package cluster

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/internal/kube/kubetest"
)

// The CNI plugin gets a token of its own account, a new one at half of the
// life of the last, and nothing of the agent's.
func TestPluginAccess(t *testing.T) {
	client := fake.NewClientset()
	asked, life, down := 0, time.Hour, false
	client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if down {
			return true, nil, errors.New("down")
		}
		request := a.(clienttesting.CreateAction)
		if request.GetSubresource() != "token" || request.GetNamespace() != "tacit-system" {
			t.Errorf("asked for %s in %s", request.GetSubresource(), request.GetNamespace())
		}
		asked++
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{
			Token: fmt.Sprintf("plugin-%d", asked), ExpirationTimestamp: metav1.NewTime(time.Now().Add(life)),
		}}, nil
	})
	agent := &rest.Config{Host: "https://198.18.0.1", BearerToken: "agent-token", TLSClientConfig: rest.TLSClientConfig{CAData: []byte("ca"), CertData: []byte("agent-cert"), KeyData: []byte("agent-key")}}
	access := &PluginAccess{Client: kubetest.NodeAPI{Clientset: client}, Config: agent, Namespace: "tacit-system"}
	read := func() string {
		t.Helper()
		text, err := access.Kubeconfig()
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	life = -time.Second // as if half of it were over at once
	read()
	life = time.Hour
	for range 3 {
		text := read()
		if !strings.Contains(text, "token: plugin-2") || !strings.Contains(text, "https://198.18.0.1") || asked != 2 {
			t.Errorf("after %d requests:\n%s", asked, text)
		}
		if strings.Contains(text, "agent") || strings.Contains(text, "client-key") {
			t.Errorf("something of the agent's is in\n%s", text)
		}
	}
	down = true
	read() // the token that there is is good for a while
	access.token = ""
	if _, err := access.Kubeconfig(); err == nil || !strings.Contains(err.Error(), "tacit-system/tacit-cni") {
		t.Errorf("without any token: %v", err)
	}
}
