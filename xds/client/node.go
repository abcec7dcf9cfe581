package client

import (
	"net/netip"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tacit-mesh/tacit/xds/wire"
)

// Node says to the control plane who asks. Istio's demands the form
// "ztunnel~IP~POD.NAMESPACE~NAMESPACE.svc.DOMAIN" and reads NODE_NAME.
type Node struct {
	Name      string     // of the node whose pods this proxy serves
	IP        netip.Addr // the proxy's own; zero: 0.0.0.0
	Pod       string     // the proxy's own; empty: "tacit-proxy-" + Name
	Namespace string     // the proxy's own; empty: "tacit-system"
	Domain    string     // empty: "cluster.local"
	// Metadata is sent besides what is always: NAME, NAMESPACE,
	// INSTANCE_IPS, NODE_NAME and the extensions understood.
	Metadata map[string]string
}

func (n Node) withDefaults() Node {
	if !n.IP.IsValid() {
		n.IP = netip.IPv4Unspecified()
	}
	n.Pod = orDefault(n.Pod, "tacit-proxy-"+n.Name)
	n.Namespace = orDefault(n.Namespace, "tacit-system")
	n.Domain = orDefault(n.Domain, "cluster.local")
	return n
}

// ID is the node's id on the wire.
func (n Node) ID() string {
	n = n.withDefaults()
	return "ztunnel~" + n.IP.String() + "~" + n.Pod + "." + n.Namespace + "~" + n.Namespace + ".svc." + n.Domain
}

func (n Node) proto() *core.Node {
	n = n.withDefaults()
	fields := map[string]*structpb.Value{}
	for key, value := range n.Metadata {
		fields[key] = structpb.NewStringValue(value)
	}
	for key, value := range map[string]string{
		"NAME":             n.Pod,
		"NAMESPACE":        n.Namespace,
		"INSTANCE_IPS":     n.IP.String(),
		"NODE_NAME":        n.Name,
		wire.ExtensionsKey: wire.Extensions(),
	} {
		fields[key] = structpb.NewStringValue(value)
	}
	return &core.Node{Id: n.ID(), Metadata: &structpb.Struct{Fields: fields}}
}

func orDefault(v, byDefault string) string {
	if v == "" {
		return byDefault
	}
	return v
}
