package kube

import (
	"fmt"
	"path/filepath"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// peopleNamespace is where people are accounts of.
const peopleNamespace = "people"

const account = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[1]s, namespace: %[2]s}
`

// right is a binding of a role that there is, in a namespace.
const right = `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: %[1]s-%[5]s, namespace: %[3]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: %[4]s, name: %[5]s}
subjects: [{kind: ServiceAccount, name: %[1]s, namespace: %[2]s}]
`

// person is somebody with a kubeconfig of their own and no rights yet; what is
// done with the result is done by them.
func (e environment) person(name string) environment {
	e.t.Helper()
	e.must(e.Apply(e.ctx, fmt.Sprintf(account, name, peopleNamespace)))
	token, err := e.Client.CoreV1().ServiceAccounts(peopleNamespace).CreateToken(e.ctx, name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	e.must(err)
	known := rest.CopyConfig(e.Config)
	e.must(rest.LoadTLSFiles(known))
	config := api.NewConfig()
	config.Clusters["test"] = &api.Cluster{Server: known.Host, CertificateAuthorityData: known.CAData}
	config.AuthInfos[name] = &api.AuthInfo{Token: token.Status.Token}
	config.Contexts["test"] = &api.Context{Cluster: "test", AuthInfo: name}
	config.CurrentContext = "test"
	theirs := &Cluster{Kubeconfig: filepath.Join(e.t.TempDir(), name), programs: e.programs, registry: e.registry}
	e.must(clientcmd.WriteToFile(*config, theirs.Kubeconfig), theirs.connect())
	return environment{theirs, e.t, e.ctx}
}

// allow binds somebody to a Role, or a ClusterRole, in a namespace, until the end
// of the test.
func (e environment) allow(person, namespace, kind, role string) {
	e.t.Helper()
	e.must(e.Apply(e.ctx, fmt.Sprintf(right, person, peopleNamespace, namespace, kind, role)))
	e.atEnd(func(e environment) error {
		return e.Delete(e.ctx, "rbac.authorization.k8s.io/v1", "RoleBinding", namespace, person+"-"+role)
	})
}
