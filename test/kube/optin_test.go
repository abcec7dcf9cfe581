package kube

import (
	"fmt"
	"time"
)

// Running Deployments opt in and out by their namespaces' labels, under load:
// permissive first, then observed, then strict. Not one request fails, and no
// connection of before is cut.
func optIn(e environment) {
	e.newNamespace("shop", nil)
	e.newNamespace("web", nil)
	e.serve("shop", "shop")
	web := e.load("web", "web", "shop.shop")

	e.label("shop", dataplaneLabel, enabled)
	e.awaitCapture("shop", true)
	web.progress()
	e.awaitGrowth("connections in clear are counted", func() (float64, error) { return e.inClear("shop") })
	e.label("web", dataplaneLabel, enabled)
	e.awaitCapture("web", true)
	web.progress()
	e.awaitEncrypted("web")
	web.wantNoFailure("opting in")
	e.observe(web)

	e.must(e.Apply(e.ctx, fmt.Sprintf(requireTLS, "shop")+fmt.Sprintf(onlyFrom, "shop", "web", "false")))
	web.progress()
	e.awaitEncrypted("web")
	for _, object := range []struct{ kind, name string }{{"PeerAuthentication", "strict"}, {"AuthorizationPolicy", "only-from"}} {
		e.must(e.Delete(e.ctx, "security.istio.io/v1", object.kind, "shop", object.name))
	}
	web.progress()
	web.wantNoFailure("STRICT for a while")

	e.label("web", dataplaneLabel, "null")
	e.awaitCapture("web", false)
	web.progress()
	e.label("shop", dataplaneLabel, "null")
	e.awaitCapture("shop", false)
	before, err := e.encrypted("web")
	e.must(err)
	web.progress()
	web.wantNoFailure("opting out")
	if now, err := e.encrypted("web"); err != nil || now > before {
		e.t.Errorf("after opting out %v connections went over mutual TLS, error %v", now-before, err)
	}
	e.flap("shop")
	web.progress()
	web.wantNoFailure("opting in and out many times a second")
}

// flap opts a namespace in and out ten times a second, and in at last.
func (e environment) flap(namespace string) {
	e.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := range 31 {
		e.label(namespace, dataplaneLabel, []string{enabled, "null"}[i%2])
		<-tick.C
	}
	e.awaitCapture(namespace, true)
}

// onlyFrom lets one identity in, or says as a dry run whom it would keep out.
const onlyFrom = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-from, namespace: %[1]s, annotations: {tacit.mesh/dry-run: "%[3]s"}}
spec:
  selector: {matchLabels: {app: shop}}
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/%[2]s/sa/%[2]s"]}}]}]
`

// observe shows what is to be seen before anything is made strict: that nobody
// comes in clear any more, and whom a policy would have kept out.
func (e environment) observe(web clients) {
	e.t.Helper()
	dryRuns := func() (float64, error) { return e.metric("tacit-proxy", "15020", "tacit_dry_run_total") }
	e.must(e.Apply(e.ctx, fmt.Sprintf(onlyFrom, "shop", "another", "true")))
	e.awaitGrowth("a policy would have kept somebody out", dryRuns)
	e.must(e.Apply(e.ctx, fmt.Sprintf(onlyFrom, "shop", "web", "true")))
	e.eventually("the policy would keep nobody out", func() error {
		before, err := dryRuns()
		e.must(err)
		web.progress()
		now, err := dryRuns()
		if now > before {
			return fmt.Errorf("%v connections more than it would let in", now-before)
		}
		return err
	})
	e.awaitNoneInClear("shop", web)
	web.wantNoFailure("a dry run")
}

// awaitNoneInClear waits until clients make traffic of which nothing comes to a
// namespace in clear.
func (e environment) awaitNoneInClear(to string, from clients) {
	e.t.Helper()
	e.eventually("nobody comes to "+to+" in clear", func() error {
		before, err := e.inClear(to)
		e.must(err)
		from.progress()
		now, err := e.inClear(to)
		if now > before {
			return fmt.Errorf("%v connections do", now-before)
		}
		return err
	})
}

// inClear is how many connections to a namespace have been accepted in clear.
func (e environment) inClear(to string) (float64, error) {
	return e.metric("tacit-proxy", "15020", "istio_tcp_connections_opened_total",
		"reporter=destination", "connection_security_policy=unknown", "destination_workload_namespace="+to)
}

// Running traffic is seen by who may, suspended and taken back, and its mesh
// replaced: one load for both, as making it takes longest.
func sightAndRolling(e environment) {
	e = e.within(8 * time.Minute)
	e.newNamespace("shop", inMesh())
	e.newNamespace("web", inMesh())
	e.serve("shop", "shop")
	web := e.load("web", "web", "shop.shop")
	e.awaitEncrypted("web")
	e.sight(web)
	e.rolling(web)
}

// rolling replaces each of Tacit's programs under load, and has each lack a right
// for a while: nothing is refused, fails or is cut.
func (e environment) rolling(web clients) {
	e.t.Helper()
	for _, program := range []struct{ kind, name string }{
		{"Deployment", "tacitd"}, {"DaemonSet", "tacit-agent"}, {"DaemonSet", "tacit-proxy"},
	} {
		e.roll(program.kind, program.name)
		e.awaitEncrypted("web")
		web.progress()
		web.wantNoFailure(fmt.Sprintf("rolling %s", program.name))
	}
	e.lackingVerbs(web)
}
