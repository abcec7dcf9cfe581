// Package dns answers the DNS queries of captured pods: addresses of the
// mesh's services from a snapshot, everything else by asking the server that
// the query would have reached without us.
//
// A [Server] is one pod's. Its story is udp.go and tcp.go (queries come in),
// message.go (what they ask), names.go and answer.go (what the mesh knows),
// and forward.go (what it does not). What does not belong here: making sockets
// (proxy/sockets), and counting (proxy/telemetry).
package dns
