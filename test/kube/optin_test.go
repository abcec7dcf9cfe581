package kube

import "fmt"

// Running Deployments opt in and out by their namespaces' labels, under load:
// not one request fails, and no connection of before is cut.
func optIn(e environment) {
	e.newNamespace("shop", nil)
	e.newNamespace("web", nil)
	e.serve("shop", "shop")
	web := e.load("web", "web", "shop.shop")

	e.label("shop", dataplaneLabel, enabled)
	e.awaitCapture("shop", true)
	web.progress()
	e.label("web", dataplaneLabel, enabled)
	e.awaitCapture("web", true)
	web.progress()
	e.awaitEncrypted("web")
	web.wantNoFailure("opting in")
	e.must(e.Apply(e.ctx, fmt.Sprintf(requireTLS, "shop")))
	web.progress()
	e.must(e.Delete(e.ctx, "security.istio.io/v1", "PeerAuthentication", "shop", "strict"))
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
}

// Each of Tacit's programs is replaced under load: nothing is refused, fails
// or is cut.
func rolling(e environment) {
	e.newNamespace("shop", inMesh())
	e.newNamespace("web", inMesh())
	e.serve("shop", "shop")
	web := e.load("web", "web", "shop.shop")
	e.awaitEncrypted("web")
	for _, program := range []struct{ kind, name string }{
		{"Deployment", "tacitd"}, {"DaemonSet", "tacit-agent"}, {"DaemonSet", "tacit-proxy"},
	} {
		e.roll(program.kind, program.name)
		e.awaitEncrypted("web")
		web.progress()
		web.wantNoFailure(fmt.Sprintf("rolling %s", program.name))
	}
}
