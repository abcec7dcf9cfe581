// Package api holds the protobuf schema that control plane, proxy and agent
// share; the packages below it are generated.
//
// workload and security are Istio's workload discovery service: the same
// protobuf packages and field numbers, so that either side may be Istio's.
// ca is its certificate service. tacit holds what travels in their extension
// fields, and what the proxy saves. What does not belong here: any code; the
// translation to values is xds/wire.
package api

//go:generate ./generate.sh
