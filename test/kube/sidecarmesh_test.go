package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/tacit-mesh/tacit/test/kube/load"
)

// sidecarFiles is the directory of a node where its sidecars find who they are
// and whom they may talk to.
const sidecarFiles = "sidecars"

// sidecarMesh is the control plane of Envoys beside pods: it gives them
// certificates, and tells them the endpoints of services and which of these have
// an Envoy, too, with which they speak mutual TLS.
type sidecarMesh struct {
	environment
	authority *authority
	services  []sidecarService
	pods      listers.PodLister
	written   map[string]string // what is in each file of endpoints
}

// sidecarService is a port of a service as an Envoy knows it.
type sidecarService struct {
	namespace, name string
	Cluster         string // its name to Envoy
	Port            int
	Prefixes        []netip.Prefix // its addresses
	Account         *url.URL       // of its pods
}

// newSidecarMesh makes a mesh of the services named "server" of namespaces.
func (e environment) newSidecarMesh(namespaces ...string) *sidecarMesh {
	e.t.Helper()
	m := &sidecarMesh{environment: e, written: map[string]string{}}
	var err error
	m.authority, err = newAuthority()
	e.must(err)
	for _, namespace := range namespaces {
		addresses, err := e.ServiceAddresses(e.ctx, namespace, "server")
		e.must(err)
		for _, port := range []int{load.EchoPort, load.HTTPPort} {
			service := sidecarService{
				namespace: namespace, name: "server", Port: port,
				Cluster: fmt.Sprintf("server.%s-%d", namespace, port),
				Account: sidecarAccount(namespace, "server"),
			}
			for _, address := range addresses {
				parsed, err := netip.ParseAddr(address)
				e.must(err)
				service.Prefixes = append(service.Prefixes, netip.PrefixFrom(parsed, parsed.BitLen()))
			}
			m.services = append(m.services, service)
		}
	}
	e.must(m.write("ca.crt", m.authority.pem()))
	m.follow()
	return m
}

func sidecarAccount(namespace, name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/" + namespace + "/sa/" + name}
}

// follow tells the Envoys of every change of the services' pods, until the test
// ends, and returns when it has told them of what there is.
func (m *sidecarMesh) follow() {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.ctx)
	factory := informers.NewSharedInformerFactory(m.Client, 0)
	m.t.Cleanup(func() {
		cancel()
		factory.Shutdown()
	})
	pods := factory.Core().V1().Pods()
	m.pods = pods.Lister()
	publish := func() {
		if err := m.publish(); err != nil {
			m.t.Error(err)
		}
	}
	registration, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { publish() },
		UpdateFunc: func(any, any) { publish() },
		DeleteFunc: func(any) { publish() },
	})
	m.must(err)
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
		m.t.Fatal(ctx.Err())
	}
}

// publish writes the endpoints of every service.
func (m *sidecarMesh) publish() error {
	var errs []error
	for _, service := range m.services {
		pods, err := m.pods.Pods(service.namespace).List(labels.SelectorFromSet(labels.Set{"app": service.name}))
		errs = append(errs, err)
		var endpoints []string
		for _, pod := range pods {
			if pod.DeletionTimestamp == nil && podReady(pod) == nil {
				endpoints = append(endpoints, service.endpoint(pod))
			}
		}
		text := fmt.Sprintf(`resources: [{"@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: %s, endpoints: [{lb_endpoints: [%s]}]}]`,
			service.Cluster, strings.Join(endpoints, ", "))
		if m.written[service.Cluster] != text {
			m.written[service.Cluster] = text
			errs = append(errs, m.write(service.Cluster+".yaml", []byte(text)))
		}
	}
	return errors.Join(errs...)
}

// endpoint is a pod as Envoy is told of it.
func (s sidecarService) endpoint(pod *corev1.Pod) string {
	mode := "disabled"
	if len(pod.Spec.InitContainers) > 0 {
		mode = "istio"
	}
	return fmt.Sprintf(`{endpoint: {address: {socket_address: {address: %q, port_value: %d}}}, metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: %s}}}}`,
		pod.Status.PodIP, s.Port, mode)
}

// write puts a file in place for the Envoys of every node, all of it at once.
func (m *sidecarMesh) write(name string, text []byte) error {
	var errs []error
	for _, node := range m.nodes {
		file := filepath.Join(node.path(sidecarFiles), name)
		errs = append(errs,
			os.MkdirAll(filepath.Dir(file), 0o755),
			os.WriteFile(file+".new", text, 0o644), // keys, too: Envoy is not root
			os.Rename(file+".new", file))
	}
	return errors.Join(errs...)
}

// add gives the pods of a Deployment a sidecar that knows some services, by which
// they are made anew.
func (m *sidecarMesh) add(namespace, name string, services []sidecarService) {
	m.t.Helper()
	identity := namespace + "-" + name
	certificate, key, err := m.authority.issue(subject{Name: identity, Identity: sidecarAccount(namespace, name)})
	m.must(err, m.write(identity+".crt", certificate), m.write(identity+".key", key))
	config, err := fill("manifests/envoy.yaml", struct {
		Identity string
		Services []sidecarService
	}{identity, services})
	m.must(err)
	image, err := m.AppImage(m.ctx)
	m.must(err)
	m.must(m.Patch(m.ctx, "apps/v1", "Deployment", namespace, name, fmt.Sprintf(sidecar, image, redirectToEnvoy, config, envoyProgram)))
}

// handshakes is how many connections over mutual TLS the sidecars of a
// namespace's servers have taken.
func (m *sidecarMesh) handshakes(namespace string) (float64, error) {
	sum := 0.0
	for _, pod := range m.podNames(namespace, "app=server") {
		out, err := m.Exec(m.ctx, namespace, pod, "/app", "get", `http://127.0.0.1:15000/stats?filter=^listener\..*15006\.ssl\.handshake$`)
		if err != nil {
			return 0, err
		}
		_, value, _ := strings.Cut(out, ": ")
		count, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			return 0, fmt.Errorf("Envoy of %s/%s says %q: %w", namespace, pod, out, err)
		}
		sum += count
	}
	return sum, nil
}
