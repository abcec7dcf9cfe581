// Package capture tests the way of a connection between a pod and the proxy:
// rules, sockets and their hand-over, with the agent's and the proxy's side in
// one process and a relay in the proxy's place that only copies bytes.
//
// It runs as root, in network namespaces of its own. What does not belong
// here: identities, policies and the tunnel between proxies.
package capture
