// Package workload is the schema of workloads and services in Istio's
// workload discovery service (istio.workload). Generated; no code of ours
// belongs here.
package workload
