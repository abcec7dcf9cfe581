package wire

import (
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/api/workload"
	"github.com/tacit-mesh/tacit/xds/model"
)

// EncodeService makes the resource of a service, of [AddressType] and named
// by its key. It fails on text that is not UTF-8. An affinity is rounded up
// to whole seconds.
func EncodeService(v *model.Service) (*anypb.Any, error) {
	out := &workload.Service{
		Name:            v.Name,
		Namespace:       v.Namespace,
		Hostname:        v.Hostname,
		Addresses:       encodeEach(v.Addresses, encodeNetworkAddress),
		Ports:           encodeEach(v.Ports, encodePort),
		SubjectAltNames: v.SANs,
		Canonical:       v.Canonical,
		LoadBalancing:   encodeBalancing(v),
	}
	if v.Private {
		out.Visibility = workload.Visibility_NAMESPACE
	}
	encodeWaypoints(v.Waypoints, out)
	if v.Affinity > 0 {
		seconds := min((v.Affinity+time.Second-1)/time.Second, math.MaxUint32)
		config, err := pack(&tacit.ServiceExtension{ClientIpAffinity: uint32(seconds)})
		if err != nil {
			return nil, fmt.Errorf("encode service %q: %w", v.Key(), err)
		}
		out.Extensions = []*workload.Extension{{Name: serviceExtension, Config: config}}
	}
	resource, err := pack(&workload.Address{Type: &workload.Address_Service{Service: out}})
	if err != nil {
		return nil, fmt.Errorf("encode service %q: %w", v.Key(), err)
	}
	return resource, nil
}

// decodeService returns a service beside the error where only waypoints cannot
// be read.
func decodeService(name string, v *workload.Service) (*model.Service, error) {
	if err := checkService(name, v); err != nil {
		return nil, err
	}
	out := &model.Service{
		Name:      v.GetName(),
		Namespace: v.GetNamespace(),
		Hostname:  v.GetHostname(),
		SANs:      v.GetSubjectAltNames(),
		Canonical: v.GetCanonical(),
		Private:   v.GetVisibility() == workload.Visibility_NAMESPACE,
		Balance:   model.BalanceMode(v.GetLoadBalancing().GetMode()),
		Unhealthy: v.GetLoadBalancing().GetHealthPolicy() == workload.LoadBalancing_ALLOW_ALL,
	}
	for _, scope := range v.GetLoadBalancing().GetRoutingPreference() {
		out.Prefer = append(out.Prefer, model.Scope(scope))
	}
	var err error
	if out.Addresses, err = decodeEach("addresses", v.GetAddresses(), decodeNetworkAddress); err != nil {
		return nil, err
	}
	if out.Ports, err = decodeEach("ports", v.GetPorts(), decodePort); err != nil {
		return nil, err
	}
	var ext tacit.ServiceExtension
	if err = findExtension(v.GetExtensions(), serviceExtension, &ext); err != nil {
		return nil, err
	}
	out.Affinity = time.Duration(ext.GetClientIpAffinity()) * time.Second
	out.Waypoints, err = decodeWaypoints(v)
	return out, err
}

func checkService(name string, v *workload.Service) error {
	key := v.GetNamespace() + "/" + v.GetHostname()
	switch {
	case v.GetNamespace() == "" || v.GetHostname() == "":
		return errors.New("namespace or hostname is missing")
	case !short(v.GetName(), v.GetNamespace(), v.GetHostname()):
		return fmt.Errorf("a name of more than %d bytes", maxText)
	case key != name:
		return fmt.Errorf("key %q is not the resource's name", key)
	case !known(v.GetVisibility()):
		return fmt.Errorf("visibility %d is unknown", v.GetVisibility())
	}
	lb := v.GetLoadBalancing()
	switch {
	case !known(lb.GetMode()):
		return fmt.Errorf("load_balancing.mode %d is unknown", lb.GetMode())
	case !known(lb.GetHealthPolicy()):
		return fmt.Errorf("load_balancing.health_policy %d is unknown", lb.GetHealthPolicy())
	}
	for i, scope := range lb.GetRoutingPreference() {
		if scope == workload.LoadBalancing_UNSPECIFIED_SCOPE || !known(scope) {
			return fmt.Errorf("load_balancing.routing_preference[%d]: scope %d is unknown", i, scope)
		}
	}
	return nil
}

func encodeBalancing(v *model.Service) *workload.LoadBalancing {
	if v.Balance == model.BalanceAny && len(v.Prefer) == 0 && !v.Unhealthy {
		return nil
	}
	out := &workload.LoadBalancing{Mode: workload.LoadBalancing_Mode(v.Balance)}
	for _, scope := range v.Prefer {
		out.RoutingPreference = append(out.RoutingPreference, workload.LoadBalancing_Scope(scope))
	}
	if v.Unhealthy {
		out.HealthPolicy = workload.LoadBalancing_ALLOW_ALL
	}
	return out
}
