package kube

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pods in the network of their node are left alone, whatever their namespace
// asks for, and both directions between them and captured pods work; those that
// ask for an identity turn them away.
func hostNetwork(e environment) {
	const namespace = "host"
	e.newNamespace(namespace, inMesh())
	e.serve(namespace, "shop")
	e.workload(namespace, "client", nil, "")
	e.workload(namespace, "host", []string{"serve"}, `
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
      hostNetwork: true`)
	for _, name := range []string{"client", "host"} {
		e.must(e.AwaitDeployment(e.ctx, namespace, name))
	}
	hosts, clients := e.podNames(namespace, "app=host"), e.podNames(namespace, "app=client")
	for _, name := range hosts {
		pod, err := e.pod(namespace, name)
		e.must(err)
		if pod.Annotations[captureAnnotation] != "" {
			e.t.Errorf("%s is in the network of its node and reported as captured", name)
		}
		for _, ip := range pod.Status.PodIPs {
			for _, client := range clients {
				e.eventually(client+" reaches the node's "+ip.IP, func() error { return e.exchange(namespace, client, ip.IP) })
			}
		}
	}

	// A port of the node that leads to one of a captured pod.
	image, err := e.AppImage(e.ctx)
	e.must(err)
	node := e.nodeOf(namespace, clients[0])
	e.must(e.Apply(e.ctx, fmt.Sprintf(withHostPort, namespace, node, image)))
	e.must(e.AwaitPod(e.ctx, namespace, "ported"))
	address, err := e.nodeAddress(node)
	e.must(err)
	url := fmt.Sprintf("http://%s:18080/", address)
	for _, pod := range append(clients, hosts...) {
		e.eventually(pod+" asks a port of the node", func() error { return e.get(namespace, pod, url) })
	}

	servers := e.podNames(namespace, "app=shop")
	e.eachFromHost(namespace, hosts, servers, func(host, address string) {
		e.eventually(host+" reaches "+address, func() error { return e.exchange(namespace, host, address) })
	})
	e.must(e.Apply(e.ctx, fmt.Sprintf(requireTLS, namespace)))
	e.eachFromHost(namespace, hosts, servers, func(host, address string) {
		e.eventually(host+" has no identity and is turned away by "+address, func() error {
			if e.exchange(namespace, host, address) == nil {
				return errors.New("it was let in")
			}
			return nil
		})
	})
}

const withHostPort = `
apiVersion: v1
kind: Pod
metadata: {name: ported, namespace: %s}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers: [{name: app, image: %q, args: [serve], ports: [{containerPort: 8080, hostPort: 18080}]}]
`

func (e environment) nodeAddress(name string) (string, error) {
	node, err := e.Client.CoreV1().Nodes().Get(e.ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP {
			return address.Address, nil
		}
	}
	return "", fmt.Errorf("node %s has no address", name)
}

// eachFromHost calls try with each pod of hosts and each address of servers.
func (e environment) eachFromHost(namespace string, hosts, servers []string, try func(host, address string)) {
	e.t.Helper()
	for _, server := range servers {
		addresses, err := e.PodAddresses(e.ctx, namespace, server)
		e.must(err)
		for _, host := range hosts {
			for _, address := range addresses {
				try(host, address)
			}
		}
	}
}

// gate is an admission webhook in a captured pod, which the API server asks
// about ConfigMaps of one namespace. It is sure to have no side effects, so
// that it is asked about dry runs.
const gate = `
apiVersion: v1
kind: Service
metadata: {name: gate, namespace: %[1]s}
spec: {selector: {app: gate}, ports: [{port: 443, targetPort: 8443}]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: tacit-test-gate}
webhooks:
- name: gate.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 10
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  clientConfig: {service: {name: gate, namespace: %[1]s}, caBundle: %[2]s}
`

const exceptGate = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: gate, namespace: %s}
spec:
  selector: {matchLabels: {app: gate}}
  mtls: {mode: STRICT}
  portLevelMtls: {8443: {mode: PERMISSIVE}}
`

// The API server, which is outside of the mesh, asks webhooks in captured pods;
// not under STRICT, unless their port is left out of that.
func webhooks(e environment) {
	const namespace, turnedAway, noAnswer = "webhooks", "denied the request", "failed calling webhook"
	e.newNamespace(namespace, inMesh())
	e.serveWebhook(namespace)
	e.awaitCapture(namespace, true)
	e.eventually("the webhook lets through", func() error { return e.tryConfigMap(namespace, "welcome") })
	e.eventually("the webhook refuses", func() error { return says(e.tryConfigMap(namespace, "unwelcome"), turnedAway) })
	e.must(e.Apply(e.ctx, fmt.Sprintf(requireTLS, namespace)))
	e.eventually("the API server has no identity", func() error { return says(e.tryConfigMap(namespace, "welcome"), noAnswer) })
	e.must(e.Apply(e.ctx, fmt.Sprintf(exceptGate, namespace)))
	e.eventually("the webhook lets through under STRICT", func() error { return e.tryConfigMap(namespace, "welcome") })
	e.eventually("the webhook refuses under STRICT", func() error { return says(e.tryConfigMap(namespace, "unwelcome"), turnedAway) })
}

// serveWebhook makes the webhook with its certificate.
func (e environment) serveWebhook(namespace string) {
	e.t.Helper()
	authority, err := newAuthority()
	e.must(err)
	host := "gate." + namespace + ".svc"
	cert, key, err := authority.issue(subject{Name: host, DNSNames: []string{host}})
	e.must(err)
	_, err = e.Client.CoreV1().Secrets(namespace).Create(e.ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "gate"}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key},
	}, metav1.CreateOptions{})
	e.must(err)
	e.workload(namespace, "gate", []string{"webhook", "unwelcome"}, `
        readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
        volumeMounts: [{name: tls, mountPath: /tls}]
      volumes: [{name: tls, secret: {secretName: gate}}]`)
	e.must(e.AwaitDeployment(e.ctx, namespace, "gate"))
	e.atEnd(func(e environment) error {
		return e.Delete(e.ctx, "admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "", "tacit-test-gate")
	})
	e.must(e.Apply(e.ctx, fmt.Sprintf(gate, namespace, base64.StdEncoding.EncodeToString(authority.pem()))))
}

// tryConfigMap asks for a ConfigMap as a dry run.
func (e environment) tryConfigMap(namespace, name string) error {
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := e.Client.CoreV1().ConfigMaps(namespace).Create(e.ctx, object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// says complains unless an error says something.
func says(err error, what string) error {
	if err == nil || !strings.Contains(err.Error(), what) {
		return fmt.Errorf("%v, want an error that says %q", err, what) //nolint:errorlint // it may be none
	}
	return nil
}
