// Package tacit is the schema of what Istio's workload discovery service has
// no field for: the messages inside its extension fields, and the proxy's
// saved state. Generated; no code of ours belongs here.
package tacit
