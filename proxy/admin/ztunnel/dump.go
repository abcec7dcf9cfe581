package ztunnel

import (
	"encoding/pem"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"crypto/x509"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/xds/model"
)

// The shape of ztunnel's dump, as istioctl reads it
// (istioctl/pkg/writer/ztunnel/configdump in Istio's repository).
type (
	dump struct {
		Workloads     []workload          `json:"workloads"`
		Services      []service           `json:"services"`
		Policies      []policy            `json:"policies"`
		Certificates  []certificate       `json:"certificates"`
		WorkloadState map[string]podState `json:"workloadState"`
	}
	gateway struct {
		Destination string `json:"destination"`
		Port        uint16 `json:"hboneMtlsPort"`
	}
	locality struct {
		Region  string `json:"region,omitempty"`
		Zone    string `json:"zone,omitempty"`
		Subzone string `json:"subzone,omitempty"`
	}
	workload struct {
		UID                   string   `json:"uid"`
		WorkloadIPs           []string `json:"workloadIps"`
		Waypoint              *gateway `json:"waypoint,omitempty"`
		Protocol              string   `json:"protocol"`
		Name                  string   `json:"name"`
		Namespace             string   `json:"namespace"`
		ServiceAccount        string   `json:"serviceAccount"`
		WorkloadName          string   `json:"workloadName"`
		WorkloadType          string   `json:"workloadType"`
		CanonicalName         string   `json:"canonicalName"`
		CanonicalRevision     string   `json:"canonicalRevision"`
		ClusterID             string   `json:"clusterId"`
		TrustDomain           string   `json:"trustDomain"`
		Locality              locality `json:"locality"`
		Node                  string   `json:"node"`
		Network               string   `json:"network,omitempty"`
		Status                string   `json:"status"`
		Hostname              string   `json:"hostname"`
		Capacity              uint32   `json:"capacity"`
		AuthorizationPolicies []string `json:"authorizationPolicies,omitempty"`
	}
	endpoint struct {
		WorkloadUID string            `json:"workloadUid"`
		Port        map[uint16]uint16 `json:"port"`
	}
	balancer struct {
		Mode               string   `json:"mode"`
		RoutingPreferences []string `json:"routingPreferences"`
		HealthPolicy       string   `json:"healthPolicy"`
	}
	service struct {
		Name            string              `json:"name"`
		Namespace       string              `json:"namespace"`
		Hostname        string              `json:"hostname"`
		VIPs            []string            `json:"vips"`
		CIDRVIPs        []string            `json:"cidrVips,omitempty"` // NETWORK/ADDRESS/BITS
		Ports           map[string]uint16   `json:"ports"`
		LoadBalancer    *balancer           `json:"loadBalancer,omitempty"`
		Waypoint        *gateway            `json:"waypoint,omitempty"`
		Endpoints       map[string]endpoint `json:"endpoints"`
		SubjectAltNames []string            `json:"subjectAltNames,omitempty"`
		Canonical       bool                `json:"canonical,omitempty"`
		Visibility      string              `json:"visibility,omitempty"`
	}
	certificate struct {
		Identity  string `json:"identity"`
		State     string `json:"state"`
		CertChain []cert `json:"certChain"`
		RootCerts []cert `json:"rootCerts"`
	}
	cert struct {
		PEM            string `json:"pem"`
		SerialNumber   string `json:"serialNumber"` // decimal
		ValidFrom      string `json:"validFrom"`
		ExpirationTime string `json:"expirationTime"`
	}
	podState struct {
		State       string      `json:"state"`
		Connections connections `json:"connections"`
		Info        podInfo     `json:"info"`
	}
	podInfo struct {
		Name           string `json:"name"`
		Namespace      string `json:"namespace"`
		TrustDomain    string `json:"trustDomain"`
		ServiceAccount string `json:"serviceAccount"`
	}
	connections struct {
		Inbound  []connection `json:"inbound"`
		Outbound []connection `json:"outbound"`
	}
	connection struct {
		Src         string `json:"src"`
		OriginalDst string `json:"originalDst"`
		ActualDst   string `json:"actualDst"`
		Protocol    string `json:"protocol"`
	}
)

const (
	hbone = "HBONE"
	tcp   = "TCP"
)

func (s *Server) dump() dump {
	snapshot := s.Snapshot()
	d := dump{
		Workloads: []workload{}, Services: []service{}, Policies: []policy{}, Certificates: []certificate{}, WorkloadState: s.pods(),
	}
	for _, w := range snapshot.Workloads() {
		d.Workloads = append(d.Workloads, workloadOf(w))
	}
	for _, v := range snapshot.Services() {
		d.Services = append(d.Services, serviceOf(snapshot, v))
	}
	for _, p := range snapshot.Policies() {
		if p.Action == model.ActionAllow || p.Action == model.ActionDeny {
			d.Policies = append(d.Policies, policyOf(p))
		}
	}
	for _, c := range s.Certificates() {
		d.Certificates = append(d.Certificates, certificateOf(c))
	}
	return d
}

func workloadOf(w *model.Workload) workload {
	out := workload{
		UID: w.UID, WorkloadIPs: []string{}, Waypoint: gatewayOf(w.Waypoint), Protocol: tcp,
		Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, TrustDomain: w.TrustDomain,
		WorkloadName: w.WorkloadName, WorkloadType: [...]string{"deployment", "cronjob", "pod", "job"}[w.WorkloadType&3],
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision, ClusterID: w.ClusterID,
		Locality: locality(w.Locality), Node: w.Node, Network: w.Network, Status: "Healthy", Hostname: w.Hostname,
		Capacity: w.Capacity, AuthorizationPolicies: w.Policies,
	}
	for _, a := range w.Addresses {
		out.WorkloadIPs = append(out.WorkloadIPs, a.String())
	}
	if w.Protocol == model.ProtocolHBONE {
		out.Protocol = hbone
	}
	if w.Unhealthy {
		out.Status = "Unhealthy"
	}
	return out
}

func gatewayOf(g *model.Gateway) *gateway {
	switch {
	case g == nil:
		return nil
	case *g == (model.Gateway{}):
		return &gateway{g.String(), 0}
	case g.Service != "":
		return &gateway{g.Service, g.Port}
	}
	return &gateway{g.Network + "/" + g.Address.String(), g.Port}
}

func serviceOf(snapshot *model.Snapshot, v *model.Service) service {
	out := service{
		Name: v.Name, Namespace: v.Namespace, Hostname: v.Hostname, VIPs: []string{}, Ports: map[string]uint16{},
		LoadBalancer: balancerOf(v), Endpoints: map[string]endpoint{}, SubjectAltNames: v.SANs, Canonical: v.Canonical,
	}
	for _, a := range v.Addresses {
		if a.Prefix.IsSingleIP() {
			out.VIPs = append(out.VIPs, a.Network+"/"+a.Prefix.Addr().String())
		} else {
			out.CIDRVIPs = append(out.CIDRVIPs, a.Network+"/"+a.Prefix.String())
		}
	}
	for _, p := range v.Ports {
		out.Ports[strconv.Itoa(int(p.Service))] = p.Target
	}
	if len(v.Waypoints) > 0 { // istioctl knows of one
		out.Waypoint = gatewayOf(&v.Waypoints[0].Gateway)
	}
	if v.Private {
		out.Visibility = "Namespace"
	}
	for e := range snapshot.Endpoints(v.Key()) {
		ports := map[uint16]uint16{}
		for _, p := range slices.Concat(v.Ports, e.Ports) { // its own are the later word
			if p.Target != 0 {
				ports[p.Service] = p.Target
			}
		}
		out.Endpoints[e.Workload.UID] = endpoint{e.Workload.UID, ports}
	}
	return out
}

var (
	modes  = [...]string{"Standard", "Strict", "Failover", "Passthrough"}
	scopes = [...]string{"", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"}
)

func balancerOf(v *model.Service) *balancer {
	if v.Balance == model.BalanceAny && len(v.Prefer) == 0 && !v.Unhealthy {
		return nil
	}
	out := &balancer{Mode: modes[v.Balance&3], RoutingPreferences: []string{}, HealthPolicy: "OnlyHealthy"}
	for _, s := range v.Prefer {
		out.RoutingPreferences = append(out.RoutingPreferences, scopes[min(int(s), len(scopes)-1)])
	}
	if v.Unhealthy {
		out.HealthPolicy = "AllowAll"
	}
	return out
}

func certificateOf(c Certificate) certificate {
	out := certificate{Identity: c.Identity.String(), State: "Initializing", CertChain: []cert{}, RootCerts: []cert{}}
	switch {
	case c.Leaf != nil:
		out.State = "Available"
		out.CertChain = append(out.CertChain, certOf(c.Leaf))
	case c.Err != nil:
		out.State = "Unavailable: " + c.Err.Error()
	}
	for _, root := range c.Authorities {
		out.RootCerts = append(out.RootCerts, certOf(root))
	}
	return out
}

func certOf(c *x509.Certificate) cert {
	return cert{
		PEM:          string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})),
		SerialNumber: c.SerialNumber.String(),
		ValidFrom:    c.NotBefore.UTC().Format(time.RFC3339), ExpirationTime: c.NotAfter.UTC().Format(time.RFC3339),
	}
}

// pods are those of this node, with their connections.
func (s *Server) pods() map[string]podState {
	states, uids := map[string]podState{}, map[string]string{}
	for _, p := range s.Pods() {
		namespace, name, _ := strings.Cut(p.Name, "/")
		uids[p.Name] = p.UID
		states[p.UID] = podState{
			State: "Up", Connections: connections{Inbound: []connection{}, Outbound: []connection{}},
			Info: podInfo{Name: name, Namespace: namespace, TrustDomain: p.Identity.TrustDomain, ServiceAccount: p.Identity.ServiceAccount},
		}
	}
	for _, c := range s.Live() {
		outbound := c.Direction == "outbound"
		whose := c.Destination.Workload
		if outbound {
			whose = c.Source.Workload
		}
		state, ok := states[uids[whose]]
		if !ok {
			continue
		}
		if outbound {
			state.Connections.Outbound = append(state.Connections.Outbound, connectionOf(c, c.Original))
		} else {
			state.Connections.Inbound = append(state.Connections.Inbound, connectionOf(c, c.Destination.Address))
		}
		states[uids[whose]] = state
	}
	return states
}

func connectionOf(c admin.Connection, original netip.AddrPort) connection {
	out := connection{Src: c.Source.Address.String(), OriginalDst: original.String(), ActualDst: c.Destination.Address.String(), Protocol: tcp}
	if c.Security == "mtls" || c.Security == "local" {
		out.Protocol = hbone
	}
	if c.Tunnel.IsValid() {
		out.ActualDst = c.Tunnel.String()
	}
	return out
}
