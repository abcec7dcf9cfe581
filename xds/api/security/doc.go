// Package security is the schema of authorization policies in Istio's
// workload discovery service (istio.security). Generated; no code of ours
// belongs here.
package security
