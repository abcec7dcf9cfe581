package kube

import (
	"fmt"

	"github.com/tacit-mesh/tacit/deploy/check"
)

// envoyConfig forwards what is redirected to Envoy to where it was to go, in
// both directions.
func envoyConfig() string {
	listener := func(name string, port int) string {
		return fmt.Sprintf(`
  - name: %s
    address: {socket_address: {address: "::", port_value: %d, ipv4_compat: true}}
    listener_filters:
    - name: envoy.filters.listener.original_dst
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: all, cluster: original}`, name, port)
	}
	return `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}
static_resources:
  listeners:` + listener("outbound", 15001) + listener("inbound", 15006) + `
  clusters:
  - {name: original, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 10s}
`
}

// redirectToEnvoy is what the init container of a sidecar does.
const redirectToEnvoy = `
for tool in iptables ip6tables; do
  $tool -t nat -A OUTPUT -p tcp -m owner --uid-owner 1337 -j RETURN
  $tool -t nat -A OUTPUT -p tcp ! -o lo -j REDIRECT --to-ports 15001
  $tool -t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 15006
done`

// sidecar makes Envoy part of a pod: there before the application, and as long.
const sidecar = `
spec:
  template:
    spec:
      initContainers:
      - name: istio-init
        image: %[1]q
        command: [/bin/sh, -ec, %[2]q]
        securityContext: {runAsUser: 0, capabilities: {add: [NET_ADMIN, NET_RAW]}}
        volumeMounts: [` + machineMounts + `]
      - name: istio-proxy
        image: %[1]q
        restartPolicy: Always
        command: [/envoy, --disable-hot-restart, --concurrency, "1", --log-level, error, --config-yaml, %[3]q]
        securityContext: {runAsUser: 1337, runAsGroup: 1337}
        startupProbe: {exec: {command: [/app, get, "http://127.0.0.1:15000/ready"]}, periodSeconds: 1, failureThreshold: 60}
        volumeMounts: [` + machineMounts + `, {name: envoy, mountPath: /envoy, readOnly: true}]
      volumes: [` + machineVolumes + `, {name: envoy, hostPath: {path: %[4]q}}]
`

// sidecars replaces Envoy beside each pod by Tacit, one namespace after the
// other, under load: pods with and without a sidecar reach each other in both
// directions meanwhile, and nothing fails.
func sidecars(e environment) {
	if !e.Ours() {
		e.t.Skip("runs Envoy of this machine: only on a cluster made here")
	}
	for _, namespace := range []string{"shop", "web"} {
		e.newNamespace(namespace, nil)
		e.serve(namespace, "server")
	}
	fromWeb, fromShop := e.load("web", "client", "server.shop"), e.load("shop", "client", "server.web")
	for _, c := range []clients{fromWeb, fromShop} {
		e.setSidecar(c.namespace, "server", true)
		e.setSidecar(c.namespace, "client", true)
	}
	for _, c := range []clients{fromWeb, fromShop} {
		c.must(c.AwaitDeployment(c.ctx, c.namespace, "server"), c.AwaitDeployment(c.ctx, c.namespace, "client"))
	}
	fromWeb.restart()
	fromShop.restart()

	e.label("shop", dataplaneLabel, enabled)
	if f := e.finding("Other meshes", "shop/"+fromShop.pods()[0]); f.Level != check.Risky {
		e.t.Errorf("tacit check says of a pod with a sidecar that is in the mesh: %+v", f)
	}
	e.toTacit("shop")
	fromWeb.progress()
	fromShop.progress()
	fromWeb.wantNoFailedExchange("from sidecars to Tacit")
	fromShop.wantNoFailedExchange("from Tacit to sidecars")

	e.label("web", dataplaneLabel, enabled)
	e.toTacit("web")
	e.awaitEncrypted("web")
	e.awaitEncrypted("shop")
	for _, namespace := range []string{"shop", "web"} {
		e.must(e.Apply(e.ctx, fmt.Sprintf(requireTLS, namespace)))
	}
	fromWeb.progress()
	fromShop.progress()
	fromWeb.wantNoFailedExchange("strict")
	fromShop.wantNoFailedExchange("strict")
}

// toTacit takes the sidecars of a namespace away, by which its pods are made
// anew.
func (e environment) toTacit(namespace string) {
	e.t.Helper()
	for _, name := range []string{"server", "client"} {
		e.setSidecar(namespace, name, false)
	}
	for _, name := range []string{"server", "client"} {
		e.must(e.AwaitDeployment(e.ctx, namespace, name))
	}
	e.awaitCapture(namespace, true)
}

// setSidecar gives a Deployment a sidecar, or takes it away.
func (e environment) setSidecar(namespace, name string, wanted bool) {
	e.t.Helper()
	patch := "spec: {template: {spec: {initContainers: null, volumes: null}}}"
	if wanted {
		image, err := e.AppImage(e.ctx)
		e.must(err)
		patch = fmt.Sprintf(sidecar, image, redirectToEnvoy, envoyConfig(), envoyProgram)
	}
	e.must(e.Patch(e.ctx, "apps/v1", "Deployment", namespace, name, patch))
}

// wantNoFailedExchange is for servers that are made anew, which cuts streams and
// kept connections.
func (c clients) wantNoFailedExchange(when string) {
	c.t.Helper()
	for pod, report := range c.reports() {
		if count := report.Exchanges; count.Failed > 0 || count.Done == 0 {
			c.t.Errorf("%s: exchanges of %s/%s: %d failed and %d did not: %q", when, c.namespace, pod, count.Failed, count.Done, count.Errors)
		}
	}
}
