package kube

import (
	"fmt"
	"time"

	"github.com/tacit-mesh/tacit/deploy/check"
)

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
        volumeMounts: [` + machineMounts + `, {name: envoy, mountPath: /envoy, readOnly: true}, {name: mesh, mountPath: /mesh, readOnly: true}]
      volumes: [` + machineVolumes + `, {name: envoy, hostPath: {path: %[4]q}}, {name: mesh, hostPath: {path: /node/` + sidecarFiles + `}}]
`

// sidecars replaces Envoy beside each pod by Tacit, one namespace after the
// other, under load: Envoys speak mutual TLS among themselves, pods with and
// without one reach each other in both directions meanwhile, and nothing fails.
func sidecars(e environment) {
	if !e.Ours() {
		e.t.Skip("runs Envoy of this machine: only on a cluster made here")
	}
	e = e.within(8 * time.Minute)
	for _, namespace := range []string{"shop", "web"} {
		e.newNamespace(namespace, nil)
		// Long enough on a busy machine for all to hear that a pod is about to
		// end: kube-proxies, Envoys and proxies of Tacit.
		e.serve(namespace, "server", "--lame-duck=12s")
	}
	// Envoy drops a connection in clear whose FIN comes before it has found out
	// that it is in clear, and waits for more where random bytes could be TLS.
	fromWeb, fromShop := e.load("web", "client", "server.shop", "--fin-last"), e.load("shop", "client", "server.web", "--fin-last")
	mesh := e.newSidecarMesh("shop", "web")
	for _, c := range []clients{fromWeb, fromShop} {
		mesh.add(c.namespace, "server", mesh.services)
		mesh.add(c.namespace, "client", mesh.services)
	}
	for _, c := range []clients{fromWeb, fromShop} {
		c.must(c.AwaitDeployment(c.ctx, c.namespace, "server"), c.AwaitDeployment(c.ctx, c.namespace, "client"))
	}
	fromWeb.restart()
	fromShop.restart()
	for _, namespace := range []string{"shop", "web"} {
		e.awaitGrowth("mutual TLS to the sidecars of "+namespace, func() (float64, error) { return mesh.handshakes(namespace) })
	}

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
	e.awaitNoneInClear("shop", fromWeb)
	e.awaitNoneInClear("web", fromShop)
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
		e.must(e.Patch(e.ctx, "apps/v1", "Deployment", namespace, name, "spec: {template: {spec: {initContainers: null, volumes: null}}}"))
	}
	for _, name := range []string{"server", "client"} {
		e.must(e.AwaitDeployment(e.ctx, namespace, name))
	}
	e.awaitCapture(namespace, true)
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
