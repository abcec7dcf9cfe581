package istio

import (
	"fmt"
	"strings"
)

// entries need a kind that only Istio has.
const entries = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: serviceentries.networking.istio.io}
spec:
  group: networking.istio.io
  scope: Namespaced
  names: {kind: ServiceEntry, listKind: ServiceEntryList, plural: serviceentries, singular: serviceentry}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}`

const entry = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop, namespace: mesh}
spec:
  hosts: [shop.example.com]
  addresses: [10.96.77.7]
  ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 8080}]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {labels: {app: server2}}`

// names are answered from what istiod says of services.
func (m *mesh) names() {
	m.t.Helper()
	m.apply(entry)
	for _, tt := range []struct{ from, name, kind, want string }{
		{"mesh/client", "server.mesh.svc.cluster.local", "A", serverVIP},
		{"mesh/client", "server.mesh.svc.cluster.local", "AAAA", ""},
		{"mesh/client", "shop.example.com", "A", "10.96.77.7"},
		{"mesh/server", "server.mesh", "A", serverVIP},
		{"mesh/server", "kubernetes.default.svc.cluster.local", "A", "10.96.0.1"},
	} {
		m.eventually("its address", func() error {
			// Nobody is at the address: whoever answers has captured the query.
			said, err := m.Pod(tt.from).Command(m.t.Context(), "dig", "+short", "+tries=1", "+time=5", "@198.18.0.53", tt.name, tt.kind).CombinedOutput()
			if err != nil || strings.TrimSpace(string(said)) != tt.want {
				return fmt.Errorf("%s %s in %s: %q, want %q: %w", tt.name, tt.kind, tt.from, said, tt.want, err)
			}
			return nil
		})
	}
	// The pods that the entry selects are reached by its address.
	m.eventually("the entry's pods", func() error {
		_, err := m.Call("mesh/client", "10.96.77.7:80")
		return err
	})
}
