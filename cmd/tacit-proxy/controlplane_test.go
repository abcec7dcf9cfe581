package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tacit-mesh/tacit/xds/client"
)

func TestWhatTheControlPlaneIsTold(t *testing.T) {
	for _, tt := range []struct {
		options options
		want    client.Node
		id      string
	}{
		{
			options{node: "node-1"}, client.Node{Name: "node-1"},
			"ztunnel~0.0.0.0~tacit-proxy-node-1.tacit-system~tacit-system.svc.cluster.local",
		}, {
			options{node: "node-1", pod: "istio-system/ztunnel-x7k2p", clusterID: "Kubernetes", network: "n1"},
			client.Node{Name: "node-1", Namespace: "istio-system", Pod: "ztunnel-x7k2p", Metadata: map[string]string{"CLUSTER_ID": "Kubernetes", "NETWORK": "n1"}},
			"ztunnel~0.0.0.0~ztunnel-x7k2p.istio-system~istio-system.svc.cluster.local",
		},
	} {
		if problems := tt.options.checkControlPlane(); len(problems) > 0 {
			t.Errorf("--pod=%s: %v", tt.options.pod, problems)
		}
		got := tt.options.xdsNode()
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || got.ID() != tt.id {
			t.Errorf("id %s, -want +got:\n%s", got.ID(), diff)
		}
	}
}

func TestPodsThatAreNone(t *testing.T) {
	for _, pod := range []string{"ztunnel", "/ztunnel", "istio-system/", "/", "a/b/c", "a/b~c", "a~b/c", "a.b/c"} {
		problems := (&options{pod: pod, clusterID: "Kubernetes"}).checkControlPlane()
		if len(problems) != 1 || !strings.Contains(problems[0].Error(), "NAMESPACE/NAME") {
			t.Errorf("--pod=%s: %v", pod, problems)
		}
	}
}

// What is told there is for nobody outside of the proxy's own pod.
func TestIstioAdminIsOnLoopback(t *testing.T) {
	for address, ok := range map[string]bool{
		"": true, "127.0.0.1:15000": true, "[::1]:15000": true, "127.0.0.2:0": true,
		":15000": false, "0.0.0.0:15000": false, "[::]:15000": false, "10.0.0.1:15000": false, "localhost:15000": false, "127.0.0.1": false,
	} {
		if problems := (&options{istioAdmin: address}).checkControlPlane(); ok != (len(problems) == 0) {
			t.Errorf("--istio-admin=%s: %v", address, problems)
		}
	}
}
