package kube

import (
	"context"
	"testing"
	"time"
)

// Tacit from its installation to the end of it, on one cluster: each part
// begins with nothing of its own and leaves nothing.
func TestTacit(t *testing.T) {
	e := use(t)
	before := e.nodeStates()
	e.must(e.PublishTacit(e.ctx, tag, e.programs))
	e.checkNodes(before)
	e.taintNodes()
	wantKind := e.bringKind()
	e.must(e.InstallTacit(e.ctx, "install", tag, settings...))
	e.awaitNoTaint()
	wantKind()
	for _, part := range []struct {
		name string
		run  func(environment)
	}{
		{"Memory", residentMemory}, // before the others leave their traces
		{"Rights", rights},
		{"PluginRights", pluginRights},
		{"OptIn", optIn},
		{"SightAndRolling", sightAndRolling},
		{"Strict", strict},
		{"Services", services},
		{"Skips", skips},
		{"Databases", databases},
		{"NetworkPolicies", networkPolicies},
		{"HostNetwork", hostNetwork},
		{"Webhooks", webhooks},
		{"Faults", faults},
		{"AddressReused", addressReused},
		{"FirstMoments", firstMoments},
		{"Storm", storm},
		{"Bench", benchmark},
		{"Sidecars", sidecars},
		{"Skew", skew},
		{"Churn", churn},
		{"ControlPlaneAway", controlPlaneAway},
		{"ServerAway", serverAway},
		{"PowerCut", powerCut},
	} {
		t.Run(part.name, func(t *testing.T) {
			e := use(t)
			defer func() { // a part that fails for good ends there
				if t.Failed() {
					t.Log(e.TacitLogs(context.WithoutCancel(e.ctx)))
				}
			}()
			part.run(e)
		})
	}
	e = use(t)
	e.uninstall()
	e.wantNodesAs(before)
	wantKind()
}

// tag is that of the images under test.
const tag = "under-test"

// settings are values of the chart for all of this: one control plane is
// enough where a test takes it away, old proxies need not live for hours, and
// what they remember of connections is to be full before the churn is over.
var settings = []string{"proxy.drainSeconds=120", "tacitd.replicas=1", "startupTaint.enabled=true", "proxy.extraArgs={--flows=4096}"}

// deadline is for parts that take longer than others.
func (e environment) within(limit time.Duration) environment {
	ctx, cancel := context.WithTimeout(e.t.Context(), limit)
	e.t.Cleanup(cancel)
	e.ctx = ctx
	return e
}
