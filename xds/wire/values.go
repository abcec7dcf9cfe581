package wire

import (
	"fmt"
	"math"
	"net/netip"

	"github.com/tacit-mesh/tacit/xds/api/security"
	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/api/workload"
	"github.com/tacit-mesh/tacit/xds/model"
)

// decodeEach translates a list; an error names the field and the element.
func decodeEach[P, M any](field string, in []P, decode func(P) (M, error)) ([]M, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]M, 0, len(in))
	for i, v := range in {
		m, err := decode(v)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", field, i, err)
		}
		out = append(out, m)
	}
	return out, nil
}

func encodeEach[M, P any](in []M, encode func(M) P) []P {
	if len(in) == 0 {
		return nil
	}
	out := make([]P, 0, len(in))
	for _, v := range in {
		out = append(out, encode(v))
	}
	return out
}

func encodeAddr(a netip.Addr) []byte { return a.AsSlice() }

// decodeAddr never returns an IPv4-mapped address: one host, one address.
func decodeAddr(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address of %d bytes, want 4 or 16", len(b))
	}
	return a.Unmap(), nil
}

func encodePrefix(p netip.Prefix) *security.Address {
	if !p.IsValid() {
		return &security.Address{} // decodes as an error
	}
	return &security.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

func decodePrefix(p *security.Address) (netip.Prefix, error) {
	return prefixOf(p.GetAddress(), p.GetLength())
}

func prefixOf(b []byte, length uint32) (netip.Prefix, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("address of %d bytes, want 4 or 16", len(b))
	}
	if length > uint32(a.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("prefix length %d of an address of %d bits", length, a.BitLen())
	}
	bits := int(length)
	if a.Is4In6() {
		if bits < 96 {
			return netip.Prefix{}, fmt.Errorf("prefix length %d of an IPv4-mapped address, want at least 96", length)
		}
		a, bits = a.Unmap(), bits-96
	}
	return netip.PrefixFrom(a, bits).Masked(), nil
}

func encodeNetworkAddress(a model.NetworkAddress) *workload.NetworkAddress {
	p := encodePrefix(a.Prefix)
	out := &workload.NetworkAddress{Network: a.Network, Address: p.Address}
	if !a.Prefix.IsSingleIP() {
		out.Length = &p.Length
	}
	return out
}

func decodeNetworkAddress(a *workload.NetworkAddress) (model.NetworkAddress, error) {
	length := uint32(len(a.GetAddress()) * 8)
	if a.Length != nil {
		length = *a.Length
	}
	if !short(a.GetNetwork()) {
		return model.NetworkAddress{}, fmt.Errorf("network: a name of more than %d bytes", maxText)
	}
	p, err := prefixOf(a.GetAddress(), length)
	return model.NetworkAddress{Network: a.GetNetwork(), Prefix: p}, err
}

func encodePort(p model.Port) *workload.Port {
	return &workload.Port{
		ServicePort: uint32(p.Service),
		TargetPort:  uint32(p.Target),
		AppProtocol: workload.AppProtocol(p.AppProtocol),
	}
}

func decodePort(p *workload.Port) (model.Port, error) {
	service, err := portNumber(p.GetServicePort())
	if err != nil {
		return model.Port{}, fmt.Errorf("service_port: %w", err)
	}
	if p.GetTargetPort() > math.MaxUint16 {
		return model.Port{}, fmt.Errorf("target_port: %d is above 65535", p.GetTargetPort())
	}
	out := model.Port{Service: service, Target: uint16(p.GetTargetPort())}
	// A protocol that this version does not know is just that.
	if known(p.GetAppProtocol()) {
		out.AppProtocol = model.AppProtocol(p.GetAppProtocol())
	}
	return out, nil
}

func encodePortRange(r model.PortRange) *tacit.PortRange {
	return &tacit.PortRange{First: uint32(r.First), Last: uint32(r.Last)}
}

func decodePortRange(r *tacit.PortRange) (model.PortRange, error) {
	first, err := portNumber(r.GetFirst())
	if err != nil {
		return model.PortRange{}, err
	}
	last, err := portNumber(r.GetLast())
	if err != nil {
		return model.PortRange{}, err
	}
	if first > last {
		return model.PortRange{}, fmt.Errorf("port range %d-%d is reversed", first, last)
	}
	return model.PortRange{First: first, Last: last}, nil
}

func portNumber(n uint32) (uint16, error) {
	if n == 0 || n > math.MaxUint16 {
		return 0, fmt.Errorf("%d is not a port (1-65535)", n)
	}
	return uint16(n), nil
}
