package model

import (
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Protocol is how a workload is reached.
type Protocol uint8

// The two ways. A workload speaks HBONE once its node's agent has reported
// that its traffic is captured.
const (
	ProtocolTCP Protocol = iota
	ProtocolHBONE
)

// WorkloadType is the kind of controller behind a workload.
type WorkloadType uint8

// The types of WDS, by their numbers on the wire.
const (
	TypeDeployment WorkloadType = iota
	TypeCronJob
	TypePod
	TypeJob
)

// String is the controller's kind as telemetry has it, such as "deployment".
func (t WorkloadType) String() string {
	names := [...]string{TypeDeployment: "deployment", TypeCronJob: "cronjob", TypePod: "pod", TypeJob: "job"}
	if int(t) < len(names) {
		return names[t]
	}
	return "unknown"
}

// Locality is where a workload runs.
type Locality struct{ Region, Zone, Subzone string }

// Workload is one pod (or other end of a connection).
type Workload struct {
	UID            string // primary key; Kubernetes: "CLUSTER//Pod/NAMESPACE/NAME"
	PodUID         string // metadata.uid; distinguishes a pod from its successor of the same name
	Name           string
	Namespace      string
	ServiceAccount string // never empty: "default" if the resource had none
	TrustDomain    string // never empty: DefaultTrustDomain if the resource had none
	Addresses      []netip.Addr
	Hostname       string
	Network        string
	ClusterID      string
	Node           string
	Locality       Locality
	Protocol       Protocol
	HostNetwork    bool // shares its node's address, so not found by address
	Unhealthy      bool // gets no new connections
	Terminating    bool // still serving, chosen last
	Capacity       uint32

	CanonicalName     string
	CanonicalRevision string
	WorkloadType      WorkloadType
	WorkloadName      string

	// Services maps a service's key, "NAMESPACE/HOSTNAME", to this
	// endpoint's own ports for it.
	Services map[string][]Port
	// Policies are the keys, "NAMESPACE/NAME", of the policies that select
	// this workload by labels.
	Policies []string
	// Labels are those of the pod's labels that some policy names; a label
	// that the pod lacks is there with an empty value, so that a missing key
	// means that the value is not known.
	Labels map[string]string

	SkipInbound       PortSet
	SkipOutbound      PortSet
	SkipOutboundCIDRs []netip.Prefix
	// SkippedBy says where these come from; nil: nowhere, or that is not known.
	SkippedBy *SkippedBy

	Paths PathNormalization // of requests to this workload

	Waypoint *Gateway // which connections to the workload's own addresses pass; nil: none
	// NetworkGateway is by what the workload is reached from other networks;
	// nil: it is not.
	NetworkGateway *Gateway
	// Tunnel is how the workload itself wants to be given what comes by HBONE,
	// as a waypoint whose own traffic is captured does; nil: not at all.
	Tunnel *ApplicationTunnel

	// Resolved is where Hostname leads, of a workload without addresses. It is
	// not found by these: whoever answers for a name could claim those of others.
	Resolved []netip.Addr

	// TrustDomainAliases are other names of its trust domain, as during a
	// migration from one to another.
	TrustDomainAliases []string

	// Bypass is "NAMESPACE/NAME" of the Bypass that is in force for the
	// workload, so that policies deny nothing there; empty: none.
	Bypass string
}

// ApplicationTunnel is how a workload is given connections that came by HBONE,
// whatever they were meant for.
type ApplicationTunnel struct {
	Port  uint16 // 0: the one that was meant
	PROXY bool   // behind a header of the PROXY protocol, version 2
}

// Identity is the workload's SPIFFE identity.
func (w *Workload) Identity() Identity {
	return Identity{TrustDomain: w.TrustDomain, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}
}

// Reached are the addresses to connect to: its own, or those of its name.
func (w *Workload) Reached() []netip.Addr {
	if len(w.Addresses) == 0 {
		return w.Resolved
	}
	return w.Addresses
}

// hostKey is by what a workload with a hostname may be named.
func (w *Workload) hostKey() string { return w.Namespace + "/" + w.Hostname }

// Identities are the workload's identity and the same by the other names of
// its trust domain.
func (w *Workload) Identities() []Identity {
	ids := []Identity{w.Identity()}
	for _, domain := range w.TrustDomainAliases {
		ids = append(ids, Identity{TrustDomain: domain, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount})
	}
	return ids
}

// InTrustDomain reports whether a trust domain is the workload's, by whatever
// name.
func (w *Workload) InTrustDomain(domain string) bool {
	return domain == w.TrustDomain || slices.Contains(w.TrustDomainAliases, domain)
}

// Is reports whether an identity is the workload's, by whatever name of its
// trust domain.
func (w *Workload) Is(id Identity) bool {
	return id.Namespace == w.Namespace && id.ServiceAccount == w.ServiceAccount && w.InTrustDomain(id.TrustDomain)
}

// HasAddress reports whether a is one of the workload's addresses.
func (w *Workload) HasAddress(a netip.Addr) bool {
	for _, x := range w.Addresses {
		if x == a {
			return true
		}
	}
	return false
}

// SkipsOutbound reports whether the workload's own connections to dst are not
// captured.
func (w *Workload) SkipsOutbound(dst netip.AddrPort) bool {
	return w.SkipOutbound.Contains(dst.Port()) ||
		slices.ContainsFunc(w.SkipOutboundCIDRs, func(p netip.Prefix) bool { return p.Contains(dst.Addr()) })
}

// Port is a service's port and the port that its endpoints listen on.
// Target 0 means a named port, which only the endpoint's own list resolves.
type Port struct {
	Service     uint16
	Target      uint16
	AppProtocol AppProtocol
}

// AppProtocol is the declared protocol of a service's port.
type AppProtocol uint8

// The protocols of WDS, by their numbers on the wire.
const (
	AppUnknown AppProtocol = iota
	AppHTTP11
	AppHTTP2
	AppGRPC
	AppTCP
	AppTLS
)

// NetworkAddress is a prefix within a network; a single address has the
// prefix of its full length.
type NetworkAddress struct {
	Network string
	Prefix  netip.Prefix
}

// BalanceMode says what a failed locality match means.
type BalanceMode uint8

// The modes of WDS, by their numbers on the wire.
const (
	BalanceAny         BalanceMode = 0
	BalanceStrict      BalanceMode = 1 // only endpoints that match every scope
	BalanceFailover    BalanceMode = 2 // those that match the most scopes first
	BalancePassthrough BalanceMode = 3 // the original destination
)

// Scope is one level of locality.
type Scope uint8

// The scopes of WDS, by their numbers on the wire.
const (
	ScopeRegion  Scope = 1
	ScopeZone    Scope = 2
	ScopeSubzone Scope = 3
	ScopeNode    Scope = 4
	ScopeCluster Scope = 5
	ScopeNetwork Scope = 6
)

// Service is a name and virtual addresses in front of workloads.
type Service struct {
	Name      string
	Namespace string
	Hostname  string
	Addresses []NetworkAddress
	Ports     []Port
	// SANs are identities that its endpoints may have besides their own.
	SANs      []string
	Canonical bool // preferred where several services share an address
	Private   bool // visible to clients of its own namespace only

	Balance   BalanceMode
	Prefer    []Scope // the order in which scopes must match
	Unhealthy bool    // unhealthy endpoints are used too (publishNotReadyAddresses)
	// Affinity above zero sends a client address to the same endpoint for
	// this long after its last connection (sessionAffinity: ClientIP).
	Affinity time.Duration

	// Waypoints are what connections to the service pass, one of them each,
	// by weight; none: they go to endpoints.
	Waypoints []WeightedGateway
}

// Gateway is a proxy to which connections go on their way. The zero Gateway
// leads nowhere: it stands for one that could not be read.
type Gateway struct {
	// Service is the key, "NAMESPACE/HOSTNAME", of the gateway's service, or of
	// the gateway itself; empty for one that is named by its address.
	Service string
	Network string
	Address netip.Addr // of the gateway's service or workload
	Port    uint16     // on which it, or its service, takes HBONE
}

// String names the gateway.
func (g Gateway) String() string {
	if g == (Gateway{}) {
		return "unreadable"
	}
	if g.Service != "" {
		return g.Service + ":" + strconv.Itoa(int(g.Port))
	}
	return netip.AddrPortFrom(g.Address, g.Port).String()
}

// WeightedGateway is one of several. One of weight 0 gets no connection.
type WeightedGateway struct {
	Gateway
	Weight uint32
}

// Key is "NAMESPACE/HOSTNAME", the service's primary key.
func (s *Service) Key() string { return s.Namespace + "/" + s.Hostname }

// Endpoint is a workload as a member of a service.
type Endpoint struct {
	Workload *Workload
	Ports    []Port // the endpoint's own, ahead of the service's
}
