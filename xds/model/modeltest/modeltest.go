// Package modeltest makes meshes of many workloads, for tests.
package modeltest

import (
	"fmt"
	"net/netip"

	"github.com/tacit-mesh/tacit/xds/model"
)

// PerService is how many workloads a service has.
const PerService = 10

// Workload is one of a large mesh, as a cluster has them.
func Workload(i int) *model.Workload {
	namespace, app := fmt.Sprint("namespace-", i/1000), fmt.Sprint("application-", i/PerService)
	return &model.Workload{
		UID: fmt.Sprintf("Kubernetes//Pod/%s/%s-5b7c9d8f6d-%05d", namespace, app, i), PodUID: fmt.Sprintf("6f1e2d3c-0000-4000-8000-%012d", i),
		Name: fmt.Sprintf("%s-5b7c9d8f6d-%05d", app, i), Namespace: namespace, ServiceAccount: app, TrustDomain: model.DefaultTrustDomain,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, ClusterID: "Kubernetes", Node: fmt.Sprint("node-", i/100),
		Protocol: model.ProtocolHBONE, CanonicalName: app, CanonicalRevision: "latest", WorkloadType: model.TypeDeployment, WorkloadName: app,
		Services: map[string][]model.Port{Service(i / PerService).Key(): {{Service: 80, Target: 8080}}},
	}
}

// Service is one of the services of a large mesh.
func Service(i int) *model.Service {
	namespace, name := fmt.Sprint("namespace-", i*PerService/1000), fmt.Sprint("application-", i)
	return &model.Service{
		Name: name, Namespace: namespace, Hostname: name + "." + namespace + ".svc.cluster.local",
		Addresses: []model.NetworkAddress{{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32)}},
		Ports:     []model.Port{{Service: 80, Target: 8080}},
	}
}

// Mesh is all of a mesh of n workloads.
func Mesh(n int) (u model.Update) {
	u.AddressesComplete, u.PoliciesComplete = true, true
	for i := range n {
		u.Workloads = append(u.Workloads, Workload(i))
	}
	for i := range n / PerService {
		u.Services = append(u.Services, Service(i))
	}
	return u
}
