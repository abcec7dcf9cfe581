package wire

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/api/workload"
	"github.com/tacit-mesh/tacit/xds/model"
)

const defaultServiceAccount = "default"

// DecodeAddress reads a resource of [AddressType]: one of workload and
// service is set unless there is an error. Where nothing but a waypoint cannot
// be read both are returned, with a waypoint that leads nowhere: an address
// that is not known would be reached past it. The name is the resource's, by
// which it will be removed.
func DecodeAddress(name string, resource *anypb.Any) (*model.Workload, *model.Service, error) {
	var a workload.Address
	if err := resource.UnmarshalTo(&a); err != nil {
		return nil, nil, fmt.Errorf("address %q: %w", name, err)
	}
	switch v := a.GetType().(type) {
	case *workload.Address_Workload:
		w, err := decodeWorkload(name, v.Workload)
		if err != nil {
			return w, nil, fmt.Errorf("workload %q: %w", name, err)
		}
		return w, nil, nil
	case *workload.Address_Service:
		s, err := decodeService(name, v.Service)
		if err != nil {
			return nil, s, fmt.Errorf("service %q: %w", name, err)
		}
		return nil, s, nil
	}
	return nil, nil, fmt.Errorf("address %q: neither workload nor service", name)
}

// EncodeWorkload makes the resource of a workload, of [AddressType] and named
// by its UID. It fails on text that is not UTF-8.
func EncodeWorkload(w *model.Workload) (*anypb.Any, error) {
	out := &workload.Workload{
		Uid:                   w.UID,
		Name:                  w.Name,
		Namespace:             w.Namespace,
		ServiceAccount:        elide(w.ServiceAccount, defaultServiceAccount),
		TrustDomain:           elide(w.TrustDomain, model.DefaultTrustDomain),
		Addresses:             encodeEach(w.Addresses, encodeAddr),
		Hostname:              w.Hostname,
		Network:               w.Network,
		ClusterId:             w.ClusterID,
		Node:                  w.Node,
		CanonicalName:         w.CanonicalName,
		CanonicalRevision:     w.CanonicalRevision,
		WorkloadType:          workload.WorkloadType(w.WorkloadType),
		WorkloadName:          w.WorkloadName,
		AuthorizationPolicies: w.Policies,
		Waypoint:              encodeGateway(w.Waypoint),
		NetworkGateway:        encodeGateway(w.NetworkGateway),
		ApplicationTunnel:     encodeTunnel(w.Tunnel),
	}
	if w.Protocol == model.ProtocolHBONE {
		out.TunnelProtocol = workload.TunnelProtocol_HBONE
	}
	if w.HostNetwork {
		out.NetworkMode = workload.NetworkMode_HOST_NETWORK
	}
	if w.Unhealthy {
		out.Status = workload.WorkloadStatus_UNHEALTHY
	}
	if w.Locality != (model.Locality{}) {
		out.Locality = &workload.Locality{Region: w.Locality.Region, Zone: w.Locality.Zone, Subzone: w.Locality.Subzone}
	}
	if w.Capacity != 1 {
		out.Capacity = wrapperspb.UInt32(w.Capacity)
	}
	if len(w.Services) > 0 {
		out.Services = make(map[string]*workload.PortList, len(w.Services))
	}
	for key, ports := range w.Services {
		out.Services[key] = &workload.PortList{Ports: encodeEach(ports, encodePort)}
	}
	var err error
	if out.Extensions, err = encodeWorkloadExtension(w); err != nil {
		return nil, fmt.Errorf("encode workload %q: %w", w.UID, err)
	}
	resource, err := pack(&workload.Address{Type: &workload.Address_Workload{Workload: out}})
	if err != nil {
		return nil, fmt.Errorf("encode workload %q: %w", w.UID, err)
	}
	return resource, nil
}

// decodeWorkload returns a workload beside the error where only gateways
// cannot be read.
func decodeWorkload(name string, w *workload.Workload) (*model.Workload, error) {
	if err := checkWorkload(name, w); err != nil {
		return nil, err
	}
	out := &model.Workload{
		UID:               w.GetUid(),
		Name:              w.GetName(),
		Namespace:         w.GetNamespace(),
		ServiceAccount:    orDefault(w.GetServiceAccount(), defaultServiceAccount),
		TrustDomain:       orDefault(w.GetTrustDomain(), model.DefaultTrustDomain),
		Hostname:          w.GetHostname(),
		Network:           w.GetNetwork(),
		ClusterID:         w.GetClusterId(),
		Node:              w.GetNode(),
		Locality:          model.Locality{Region: w.GetLocality().GetRegion(), Zone: w.GetLocality().GetZone(), Subzone: w.GetLocality().GetSubzone()},
		HostNetwork:       w.GetNetworkMode() == workload.NetworkMode_HOST_NETWORK,
		Unhealthy:         w.GetStatus() == workload.WorkloadStatus_UNHEALTHY,
		Capacity:          1,
		CanonicalName:     w.GetCanonicalName(),
		CanonicalRevision: w.GetCanonicalRevision(),
		WorkloadType:      model.TypePod, // what any kind unknown to this version still is
		WorkloadName:      w.GetWorkloadName(),
		Policies:          w.GetAuthorizationPolicies(),
	}
	if w.GetTunnelProtocol() == workload.TunnelProtocol_HBONE {
		out.Protocol = model.ProtocolHBONE
	}
	if known(w.GetWorkloadType()) {
		out.WorkloadType = model.WorkloadType(w.GetWorkloadType())
	}
	if w.Capacity != nil {
		out.Capacity = w.GetCapacity().GetValue()
	}
	// Namespace and account become part of an identity, so they must be
	// able to stand in one.
	if _, err := model.ParseIdentity(out.Identity().String()); err != nil {
		return nil, err
	}
	var err error
	if out.Addresses, err = decodeEach("addresses", w.GetAddresses(), decodeAddr); err != nil {
		return nil, err
	}
	if out.Services, err = decodeServicePorts(w.GetServices()); err != nil {
		return nil, err
	}
	if err := decodeWorkloadExtension(w.GetExtensions(), out); err != nil {
		return nil, err
	}
	if out.Tunnel, err = decodeTunnel(w.GetApplicationTunnel()); err != nil {
		return nil, fmt.Errorf("application_tunnel: %w", err)
	}
	return out, decodeGateways(w, out)
}

// decodeGateways reads what is passed on the way to a workload. What cannot be
// read leads nowhere, beside the error.
func decodeGateways(w *workload.Workload, out *model.Workload) error {
	var err1, err2 error
	if out.Waypoint, err1 = decodeGateway(w.GetWaypoint()); err1 != nil {
		err1 = fmt.Errorf("waypoint: %w", err1)
	}
	if out.NetworkGateway, err2 = decodeGateway(w.GetNetworkGateway()); err2 != nil {
		err2 = fmt.Errorf("network_gateway: %w", err2)
	}
	return errors.Join(err1, err2)
}

func checkWorkload(name string, w *workload.Workload) error {
	switch {
	case w.GetUid() == "":
		return errors.New("uid is missing")
	case !short(w.GetUid(), w.GetName(), w.GetNamespace(), w.GetServiceAccount(), w.GetTrustDomain(), w.GetHostname(), w.GetNetwork(), w.GetClusterId(),
		w.GetNode(), w.GetCanonicalName(), w.GetCanonicalRevision(), w.GetWorkloadName(),
		w.GetLocality().GetRegion(), w.GetLocality().GetZone(), w.GetLocality().GetSubzone()):
		return fmt.Errorf("a name of more than %d bytes", maxText)
	case w.GetUid() != name:
		return fmt.Errorf("uid %q is not the resource's name", w.GetUid())
	case w.GetTunnelProtocol() == workload.TunnelProtocol_LEGACY_ISTIO_MTLS:
		return errors.New("tunnel_protocol LEGACY_ISTIO_MTLS is not supported")
	case !known(w.GetTunnelProtocol()):
		return fmt.Errorf("tunnel_protocol %d is unknown", w.GetTunnelProtocol())
	case !known(w.GetStatus()):
		return fmt.Errorf("status %d is unknown", w.GetStatus())
	case !known(w.GetNetworkMode()):
		return fmt.Errorf("network_mode %d is unknown", w.GetNetworkMode())
	}
	return nil
}

// maxText bounds each name: they are in logs, metrics and headers.
const maxText = 4 << 10

func short(texts ...string) bool {
	return !slices.ContainsFunc(texts, func(s string) bool { return len(s) > maxText })
}

func decodeServicePorts(services map[string]*workload.PortList) (map[string][]model.Port, error) {
	if len(services) == 0 {
		return nil, nil
	}
	out := make(map[string][]model.Port, len(services))
	for key, list := range services {
		ports, err := decodeEach("ports", list.GetPorts(), decodePort)
		if err != nil {
			return nil, fmt.Errorf("services[%q].%w", key, err)
		}
		if namespace, hostname, _ := strings.Cut(key, "/"); namespace == "" || hostname == "" || !short(key) {
			return nil, fmt.Errorf("services[%.64q]: want the key of a service, NAMESPACE/HOSTNAME", key)
		}
		out[key] = ports
	}
	return out, nil
}

func encodeWorkloadExtension(w *model.Workload) ([]*workload.Extension, error) {
	ext := &tacit.WorkloadExtension{
		PodUid:            w.PodUID,
		SkipInbound:       encodeEach(w.SkipInbound, encodePortRange),
		SkipOutbound:      encodeEach(w.SkipOutbound, encodePortRange),
		SkipOutboundCidrs: encodeEach(w.SkipOutboundCIDRs, encodePrefix),
		Labels:            w.Labels,
		Terminating:       w.Terminating,
		Paths:             encodePaths(w.Paths),

		TrustDomainAliases: w.TrustDomainAliases,
		Bypass:             w.Bypass,
	}
	if by := w.SkippedBy; by != nil {
		ext.SkippedBy = &tacit.SkippedBy{Inbound: by.Inbound, Outbound: by.Outbound, OutboundCidrs: by.OutboundCIDRs}
	}
	if proto.Size(ext) == 0 {
		return nil, nil
	}
	config, err := pack(ext)
	if err != nil {
		return nil, err
	}
	return []*workload.Extension{{Name: workloadExtension, Config: config}}, nil
}

func decodeWorkloadExtension(list []*workload.Extension, out *model.Workload) error {
	var ext tacit.WorkloadExtension
	if err := findExtension(list, workloadExtension, &ext); err != nil {
		return err
	}
	in, err1 := decodeEach("skip_inbound", ext.GetSkipInbound(), decodePortRange)
	outbound, err2 := decodeEach("skip_outbound", ext.GetSkipOutbound(), decodePortRange)
	cidrs, err3 := decodeEach("skip_outbound_cidrs", ext.GetSkipOutboundCidrs(), decodePrefix)
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("extension %s: %w", workloadExtension, err)
	}
	out.PodUID = ext.GetPodUid()
	out.SkipInbound, out.SkipOutbound, out.SkipOutboundCIDRs = in, outbound, cidrs
	out.Labels = ext.GetLabels()
	out.Terminating = ext.GetTerminating()
	out.Paths = decodePaths(ext.GetPaths())
	out.TrustDomainAliases = ext.GetTrustDomainAliases()
	out.Bypass = ext.GetBypass()
	if by := ext.GetSkippedBy(); by != nil {
		out.SkippedBy = &model.SkippedBy{Inbound: by.GetInbound(), Outbound: by.GetOutbound(), OutboundCIDRs: by.GetOutboundCidrs()}
	}
	return nil
}

// elide leaves out what the receiver supplies by itself.
func elide(v, byDefault string) string {
	if v == byDefault {
		return ""
	}
	return v
}

func orDefault(v, byDefault string) string {
	if v == "" {
		return byDefault
	}
	return v
}
