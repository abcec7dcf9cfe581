package wire

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/tacit-mesh/tacit/xds/api/workload"
	"github.com/tacit-mesh/tacit/xds/model"
)

func encodeGateway(g *model.Gateway) *workload.GatewayAddress {
	if g == nil {
		return nil
	}
	out := &workload.GatewayAddress{HboneMtlsPort: uint32(g.Port)}
	if g.Service != "" {
		namespace, hostname, _ := strings.Cut(g.Service, "/")
		out.Destination = &workload.GatewayAddress_Hostname{Hostname: &workload.NamespacedHostname{Namespace: namespace, Hostname: hostname}}
	} else {
		out.Destination = &workload.GatewayAddress_Address{Address: encodeNetworkAddress(model.NetworkAddress{
			Network: g.Network, Prefix: netip.PrefixFrom(g.Address, g.Address.BitLen()),
		})}
	}
	return out
}

// decodeGateway is nil for none. In the place of one that cannot be read it
// returns, beside the error, the zero one, which leads nowhere: what must pass
// a gateway may not go straight.
func decodeGateway(g *workload.GatewayAddress) (*model.Gateway, error) {
	if g == nil {
		return nil, nil //nolint:nilnil // there is none, and nothing is wrong with that
	}
	out, err := readGateway(g)
	if err != nil {
		return new(model.Gateway), err
	}
	return out, nil
}

func readGateway(g *workload.GatewayAddress) (*model.Gateway, error) {
	if g.GetHboneMtlsPort() == 0 || g.GetHboneMtlsPort() > math.MaxUint16 {
		return nil, fmt.Errorf("hbone_mtls_port: %d is no port", g.GetHboneMtlsPort())
	}
	out := &model.Gateway{Port: uint16(g.GetHboneMtlsPort())}
	switch d := g.GetDestination().(type) {
	case *workload.GatewayAddress_Hostname:
		if !short(d.Hostname.GetNamespace(), d.Hostname.GetHostname()) {
			return nil, fmt.Errorf("hostname: a name of more than %d bytes", maxText)
		}
		if d.Hostname.GetNamespace() == "" || d.Hostname.GetHostname() == "" || strings.Contains(d.Hostname.GetNamespace(), "/") {
			return nil, fmt.Errorf("hostname: %q in namespace %q names no service", d.Hostname.GetHostname(), d.Hostname.GetNamespace())
		}
		out.Service = d.Hostname.GetNamespace() + "/" + d.Hostname.GetHostname()
	case *workload.GatewayAddress_Address:
		a, err := decodeNetworkAddress(d.Address)
		if err != nil {
			return nil, fmt.Errorf("address: %w", err)
		}
		if !a.Prefix.IsSingleIP() {
			return nil, fmt.Errorf("address: %v is not the address of one gateway", a.Prefix)
		}
		out.Network, out.Address = a.Network, a.Prefix.Addr()
	default:
		return nil, errors.New("neither hostname nor address")
	}
	return out, nil
}

// encodeWaypoints uses the plain field where there is no choice.
func encodeWaypoints(list []model.WeightedGateway, out *workload.Service) {
	if len(list) == 1 && list[0].Weight == 1 {
		out.Waypoint = encodeGateway(&list[0].Gateway)
		return
	}
	for _, g := range list {
		out.WeightedWaypoints = append(out.WeightedWaypoints, &workload.WeightedWaypoint{Destination: encodeGateway(&g.Gateway), Weight: g.Weight})
	}
}

// decodeWaypoints prefers the weighted ones where both fields are set. Beside
// an error it returns what is to be passed all the same, as decodeGateway does.
func decodeWaypoints(in *workload.Service) (out []model.WeightedGateway, err error) {
	single, err := decodeGateway(in.GetWaypoint())
	if err != nil {
		err = fmt.Errorf("waypoint: %w", err)
	}
	total := uint64(0)
	for i, w := range in.GetWeightedWaypoints() {
		g, unread := decodeGateway(w.GetDestination())
		if g == nil {
			g, unread = new(model.Gateway), errors.New("is missing")
		}
		if unread != nil {
			err = errors.Join(err, fmt.Errorf("weighted_waypoints[%d].destination: %w", i, unread))
		}
		total += uint64(w.GetWeight())
		out = append(out, model.WeightedGateway{Gateway: *g, Weight: w.GetWeight()})
	}
	switch {
	case len(out) > 0 && total == 0:
		return []model.WeightedGateway{{Weight: 1}}, errors.Join(err, errors.New("weighted_waypoints: all weights are 0"))
	case len(out) == 0 && single != nil:
		out = []model.WeightedGateway{{Gateway: *single, Weight: 1}}
	}
	return out, err
}

func encodeTunnel(t *model.ApplicationTunnel) *workload.ApplicationTunnel {
	if t == nil {
		return nil
	}
	out := &workload.ApplicationTunnel{Port: uint32(t.Port)}
	if t.PROXY {
		out.Protocol = workload.ApplicationTunnel_PROXY
	}
	return out
}

func decodeTunnel(t *workload.ApplicationTunnel) (*model.ApplicationTunnel, error) {
	switch {
	case t == nil:
		return nil, nil //nolint:nilnil // there is none, and nothing is wrong with that
	case !known(t.GetProtocol()):
		return nil, fmt.Errorf("protocol %d is unknown", t.GetProtocol())
	case t.GetPort() > math.MaxUint16:
		return nil, fmt.Errorf("port: %d is no port", t.GetPort())
	}
	return &model.ApplicationTunnel{Port: uint16(t.GetPort()), PROXY: t.GetProtocol() == workload.ApplicationTunnel_PROXY}, nil
}
