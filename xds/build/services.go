package build

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tacit-mesh/tacit/xds/model"
)

// service translates a Service; nil for one that only renames another
// (ExternalName). Ports other than TCP are left out.
func service(s Settings, svc *corev1.Service) (*model.Service, []error) {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, nil
	}
	out := &model.Service{
		Name:      svc.Name,
		Namespace: svc.Namespace,
		Hostname:  svc.Name + "." + svc.Namespace + ".svc." + s.Domain,
		Canonical: true,
		Unhealthy: svc.Spec.PublishNotReadyAddresses,
		Affinity:  affinity(svc),
	}
	var errs []error
	out.Balance, out.Prefer, errs = balance(svc)
	addresses, addressErrs := clusterIPs(svc)
	out.Addresses, errs = addresses, append(errs, addressErrs...)
	for _, p := range svc.Spec.Ports {
		if !isTCP(p.Protocol) {
			continue
		}
		port, err := tcpPort(p.Port)
		if err != nil {
			errs = append(errs, fmt.Errorf("spec.ports[%s].port: %w", p.Name, err))
			continue
		}
		target, err := targetPort(p)
		if err != nil {
			errs = append(errs, fmt.Errorf("spec.ports[%s].targetPort: %w", p.Name, err))
			continue
		}
		out.Ports = append(out.Ports, model.Port{Service: port, Target: target, AppProtocol: appProtocol(p)})
	}
	return out, errs
}

func isTCP(p corev1.Protocol) bool { return p == "" || p == corev1.ProtocolTCP }

func tcpPort(n int32) (uint16, error) {
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("%d is not a port (1-65535)", n)
	}
	return uint16(n), nil
}

// targetPort is the number that every endpoint listens on; 0 where the name
// has to be looked up at each.
func targetPort(p corev1.ServicePort) (uint16, error) {
	switch {
	case p.TargetPort.Type == intstr.String && p.TargetPort.StrVal != "":
		return 0, nil
	case p.TargetPort.IntVal == 0:
		return tcpPort(p.Port)
	}
	return tcpPort(p.TargetPort.IntVal)
}

func clusterIPs(svc *corev1.Service) (out []model.NetworkAddress, errs []error) {
	list := svc.Spec.ClusterIPs
	if len(list) == 0 && svc.Spec.ClusterIP != "" {
		list = []string{svc.Spec.ClusterIP}
	}
	for _, ip := range list {
		if ip == corev1.ClusterIPNone {
			continue
		}
		a, err := parseAddress(ip)
		if err != nil {
			errs = append(errs, fmt.Errorf("spec.clusterIPs: %w", err))
			continue
		}
		out = append(out, model.NetworkAddress{Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	return out, errs
}

// balance is which endpoints are preferred, and whether others will do. The
// scopes of trafficDistribution are those of Istio's ambient mode.
func balance(svc *corev1.Service) (model.BalanceMode, []model.Scope, []error) {
	if p := svc.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		return model.BalanceStrict, []model.Scope{model.ScopeNode}, nil
	}
	zone := []model.Scope{model.ScopeNetwork, model.ScopeRegion, model.ScopeZone}
	switch d := svc.Spec.TrafficDistribution; {
	case d == nil || *d == "":
		return model.BalanceAny, nil, nil
	case *d == corev1.ServiceTrafficDistributionPreferClose:
		return model.BalanceFailover, append(zone, model.ScopeSubzone), nil
	case *d == corev1.ServiceTrafficDistributionPreferSameZone:
		return model.BalanceFailover, zone, nil
	case *d == corev1.ServiceTrafficDistributionPreferSameNode:
		return model.BalanceFailover, append(zone, model.ScopeSubzone, model.ScopeNode), nil
	default:
		return model.BalanceAny, nil, []error{fmt.Errorf("spec.trafficDistribution: %q is not known: taken for none", *d)}
	}
}

// affinity is zero without sessionAffinity: ClientIP.
func affinity(svc *corev1.Service) time.Duration {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil && *c.ClientIP.TimeoutSeconds > 0 {
		return time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
	}
	return time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
}

// appProtocol is what the port declares, or else what its name begins with
// (Istio, "Protocol Selection").
func appProtocol(p corev1.ServicePort) model.AppProtocol {
	if p.AppProtocol != nil {
		switch strings.ToLower(*p.AppProtocol) {
		case "http":
			return model.AppHTTP11
		case "http2", "kubernetes.io/h2c":
			return model.AppHTTP2
		case "grpc":
			return model.AppGRPC
		case "tcp":
			return model.AppTCP
		case "https", "tls":
			return model.AppTLS
		}
		return model.AppUnknown
	}
	first, _, _ := strings.Cut(p.Name, "-")
	switch first {
	case "http":
		return model.AppHTTP11
	case "http2":
		return model.AppHTTP2
	case "grpc":
		return model.AppGRPC
	case "tcp", "redis", "mysql", "mongo":
		return model.AppTCP
	case "https", "tls":
		return model.AppTLS
	}
	return model.AppUnknown
}
