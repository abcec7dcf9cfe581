package admin

import (
	"net/http"
	"net/netip"
	"time"

	"github.com/tacit-mesh/tacit/internal/version"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Dump is what there is in the answer to /dump beside what people read.
type Dump struct {
	Version string `json:"version"` // of the proxy
	// Export is the mesh for programs, as xds/client writes it; where it was
	// asked for alone.
	Export []byte `json:"export,omitempty"`
}

// dump answers with the whole snapshot: workloads by UID, services and
// policies by key. With export among what is asked, the mesh comes in the form
// for programs, too.
func (s *Server) dump(w http.ResponseWriter, r *http.Request) {
	var export []byte
	if r.URL.Query().Has("export") {
		if s.Export == nil {
			answerWith(w, http.StatusNotFound, problem{"this proxy has no export of its mesh"})
			return
		}
		var err error
		if export, err = s.Export(); err != nil {
			answerWith(w, http.StatusInternalServerError, problem{err.Error()})
			return
		}
	}
	dump(w, s.Snapshot(), export)
}

func dump(w http.ResponseWriter, s *model.Snapshot, export []byte) {
	stream(w, func(e *encoder) {
		e.member("version", version.String())
		if export != nil {
			e.member("export", export)
		}
		e.member("generation", s.Generation())
		e.member("addressesReady", s.AddressesReady())
		e.member("policiesReady", s.PoliciesReady())
		writeList(e, "workloads", s.Workloads(), dumpWorkload)
		writeList(e, "services", s.Services(), func(v *model.Service) any { return dumpService(s, v) })
		writeList(e, "policies", s.Policies(), dumpPolicy)
		writeList(e, "removedPolicies", s.RemovedPolicies(), asIs)
	})
}

type workloadDump struct {
	UID                string            `json:"uid"`
	PodUID             string            `json:"podUID,omitempty"`
	Namespace          string            `json:"namespace"`
	Name               string            `json:"name"`
	Identity           string            `json:"identity"`
	Addresses          []netip.Addr      `json:"addresses,omitempty"`
	Hostname           string            `json:"hostname,omitempty"`
	Network            string            `json:"network,omitempty"`
	Cluster            string            `json:"cluster,omitempty"`
	Node               string            `json:"node,omitempty"`
	Region             string            `json:"region,omitempty"`
	Zone               string            `json:"zone,omitempty"`
	Subzone            string            `json:"subzone,omitempty"`
	Captured           bool              `json:"captured"`
	TrustDomainAliases []string          `json:"trustDomainAliases,omitempty"`
	Bypass             string            `json:"bypass,omitempty"`
	HostNetwork        bool              `json:"hostNetwork,omitempty"`
	Unhealthy          bool              `json:"unhealthy,omitempty"`
	Terminating        bool              `json:"terminating,omitempty"`
	Capacity           uint32            `json:"capacity"`
	Services           map[string][]port `json:"services,omitempty"`
	Policies           []string          `json:"policies,omitempty"`
	Labels             map[string]string `json:"labels,omitempty"`
	SkipInbound        string            `json:"skipInbound,omitempty"`
	SkipOutbound       string            `json:"skipOutbound,omitempty"`
	SkipOutboundCIDRs  []netip.Prefix    `json:"skipOutboundCIDRs,omitempty"`
}

type port struct {
	Service uint16 `json:"service"`
	Target  uint16 `json:"target,omitempty"` // absent: a named port
}

func dumpWorkload(w *model.Workload) any {
	services := map[string][]port{}
	for key, ports := range w.Services {
		services[key] = dumpPorts(ports)
	}
	return workloadDump{
		UID: w.UID, PodUID: w.PodUID, Namespace: w.Namespace, Name: w.Name, Identity: w.Identity().String(),
		Addresses: w.Addresses, Hostname: w.Hostname, Network: w.Network, Cluster: w.ClusterID, Node: w.Node,
		Region: w.Locality.Region, Zone: w.Locality.Zone, Subzone: w.Locality.Subzone,
		Captured: w.Protocol == model.ProtocolHBONE, TrustDomainAliases: w.TrustDomainAliases, Bypass: w.Bypass, HostNetwork: w.HostNetwork, Unhealthy: w.Unhealthy,
		Terminating: w.Terminating, Capacity: w.Capacity, Services: services, Policies: w.Policies, Labels: w.Labels,
		SkipInbound: w.SkipInbound.String(), SkipOutbound: w.SkipOutbound.String(), SkipOutboundCIDRs: w.SkipOutboundCIDRs,
	}
}

func dumpPorts(ports []model.Port) []port {
	out := []port{}
	for _, p := range ports {
		out = append(out, port{p.Service, p.Target})
	}
	return out
}

type serviceDump struct {
	Key             string        `json:"key"`
	Addresses       []virtualAddr `json:"addresses,omitempty"`
	Ports           []port        `json:"ports"`
	SANs            []string      `json:"sans,omitempty"`
	Canonical       bool          `json:"canonical,omitempty"`
	Private         bool          `json:"private,omitempty"`
	Balance         string        `json:"balance,omitempty"`
	Prefer          []string      `json:"prefer,omitempty"`
	UseUnhealthy    bool          `json:"useUnhealthy,omitempty"`
	AffinitySeconds int64         `json:"affinitySeconds,omitempty"`
	Endpoints       int           `json:"endpoints"`
}

type virtualAddr struct {
	Network string       `json:"network,omitempty"`
	Prefix  netip.Prefix `json:"prefix"`
}

func dumpService(s *model.Snapshot, v *model.Service) any {
	d := serviceDump{
		Key: v.Key(), Ports: dumpPorts(v.Ports), SANs: v.SANs, Canonical: v.Canonical, Private: v.Private,
		Balance: balanceName(v.Balance), UseUnhealthy: v.Unhealthy, AffinitySeconds: int64(v.Affinity / time.Second),
	}
	for _, a := range v.Addresses {
		d.Addresses = append(d.Addresses, virtualAddr(a))
	}
	for _, scope := range v.Prefer {
		d.Prefer = append(d.Prefer, scopeName(scope))
	}
	for range s.Endpoints(v.Key()) {
		d.Endpoints++
	}
	return d
}

func balanceName(b model.BalanceMode) string {
	switch b {
	case model.BalanceStrict:
		return "strict"
	case model.BalanceFailover:
		return "failover"
	case model.BalancePassthrough:
		return "passthrough"
	case model.BalanceAny:
	}
	return ""
}

func scopeName(s model.Scope) string {
	switch s {
	case model.ScopeRegion:
		return "region"
	case model.ScopeZone:
		return "zone"
	case model.ScopeSubzone:
		return "subzone"
	case model.ScopeNode:
		return "node"
	case model.ScopeCluster:
		return "cluster"
	case model.ScopeNetwork:
		return "network"
	}
	return "unknown"
}
