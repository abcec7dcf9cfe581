package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"github.com/tacit-mesh/tacit/internal/version"
	"github.com/tacit-mesh/tacit/proxy/admin/ztunnel"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/client"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// checkControlPlane returns what is wrong with the flags that say who this
// proxy is to the control plane.
func (o *options) checkControlPlane() (problems []error) {
	if namespace, name, ok := strings.Cut(o.pod, "/"); o.pod != "" && (!ok || namespace == "" || name == "" || strings.ContainsAny(name, "/~") || strings.ContainsAny(namespace, "~.")) {
		problems = append(problems, fmt.Errorf("--pod=%s: want NAMESPACE/NAME, such as istio-system/ztunnel-x7k2p", o.pod))
	}
	if o.pod != "" && o.clusterID == "" {
		problems = append(problems, errors.New("--pod without --cluster-id: by the cluster's name istiod's workloads are known; its own default is Kubernetes"))
	}
	if at, err := netip.ParseAddrPort(o.istioAdmin); o.istioAdmin != "" && (err != nil || !at.Addr().IsLoopback()) {
		problems = append(problems, fmt.Errorf("--istio-admin=%s: want an address of the loopback device, such as 127.0.0.1:15000: everybody who reaches it is told everything", o.istioAdmin))
	}
	return problems
}

// istio is what istioctl asks.
func (p *process) istio() *ztunnel.Server {
	return &ztunnel.Server{
		Snapshot: p.state.Snapshot, Live: p.proxy.Live, Level: p.level,
		Certificates: func() (all []ztunnel.Certificate) {
			for _, s := range p.store.All() {
				all = append(all, ztunnel.Certificate{Identity: s.Identity, Leaf: s.Leaf, Authorities: s.Authorities, Err: s.Err})
			}
			return all
		},
		Pods: func() (all []ztunnel.Pod) {
			for _, pod := range p.proxy.Pods() {
				id, _ := model.ParseIdentity(pod.Identity) // it was made of one
				all = append(all, ztunnel.Pod{UID: pod.UID, Name: pod.Pod, Identity: id})
			}
			return all
		},
	}
}

// ztunnel is what Istio's dashboard shows of this proxy; nil where it is not in
// ztunnel's place.
func (p *process) ztunnel() func() telemetry.Ztunnel {
	if p.istioAdmin == "" {
		return nil
	}
	received := func(s client.TypeStatus) telemetry.Received {
		return telemetry.Received{Responses: s.Responses, Bytes: s.Bytes}
	}
	return func() telemetry.Ztunnel {
		s := p.xds.Status()
		return telemetry.Ztunnel{
			Version: version.String(), Pods: len(p.proxy.Pods()),
			Ended: map[string]uint64{
				"ConnectionError": s.Ended.Unanswered, "Reconnect": s.Ended.Lost, "Error": s.Ended.Failed, "Complete": s.Ended.Complete,
			},
			Received: map[string]telemetry.Received{wire.AddressType: received(s.Addresses), wire.AuthorizationType: received(s.Policies)},
		}
	}
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

// controlPlaneFlags say who the control plane is, and who this is to it.
func (o *options) controlPlaneFlags(f *pflag.FlagSet) {
	f.StringVar(&o.xds, "xds", "", "`HOST:PORT` of the control plane")
	f.StringVar(&o.report, "report", "", "`HOST:PORT` of the tacitd that is told what this proxy sees, in sums; where the name has several addresses, each of them; by default that of --xds")
	f.StringVar(&o.serverName, "server-name", "tacitd.tacit-system.svc", "DNS `name` in the control plane's certificate")
	f.StringVar(&o.root, "root", "", "`file` of the PEM roots by which the control plane is known")
	f.StringVar(&o.token, "token", "", "`file` of the token by which the control plane knows this node")
	f.StringVar(&o.clusterID, "cluster-id", "", "`id` of this cluster, which istiod wants to be told; its own default is Kubernetes")
	f.StringVar(&o.network, "network", "", "`name` of this node's network, to tell istiod where it knows several; which one a pod is in the control plane says")
	f.BoolVar(&o.onDemand, "on-demand", false, "have the control plane send, of workloads and services, only those of this node and those that its pods talk to, asked for when a connection first goes there: for very large meshes. No name of the mesh's is answered by DNS then, all queries are forwarded")
	f.StringVar(&o.pod, "pod", "", "this proxy's own pod as `NAMESPACE/NAME`, which istiod compares with the token")
}
