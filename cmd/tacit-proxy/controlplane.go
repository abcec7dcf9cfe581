package main

import (
	"fmt"
	"strings"

	"github.com/tacit-mesh/tacit/xds/client"
)

// checkControlPlane returns what is wrong with the flags that say who this
// proxy is to the control plane.
func (o *options) checkControlPlane() (problems []error) {
	if namespace, name, ok := strings.Cut(o.pod, "/"); o.pod != "" && (!ok || namespace == "" || name == "" || strings.ContainsAny(name, "/~") || strings.ContainsAny(namespace, "~.")) {
		problems = append(problems, fmt.Errorf("--pod=%s: want NAMESPACE/NAME, such as istio-system/ztunnel-x7k2p", o.pod))
	}
	return problems
}

// xdsNode is what the control plane is told about this proxy.
func (o *options) xdsNode() client.Node {
	namespace, name, _ := strings.Cut(o.pod, "/")
	node := client.Node{Name: o.node, Pod: name, Namespace: namespace}
	for name, value := range map[string]string{"CLUSTER_ID": o.clusterID, "NETWORK": o.network} {
		if value == "" {
			continue
		}
		if node.Metadata == nil {
			node.Metadata = map[string]string{}
		}
		node.Metadata[name] = value
	}
	return node
}
