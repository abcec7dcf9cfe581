// Package telemetry turns what happened to connections into metrics and log
// lines. It is the only place of the proxy that knows their names, which are
// stable.
//
// A connection has one [Record]; the [Recorder] counts it when it opens, while
// it lives and when it ends, and writes one JSON line at its end:
//
//	id             connection id, the same on both nodes
//	direction      outbound (reported by the client's node) or inbound
//	security       mtls, plain, skipped, local or passthrough
//	outcome        ok, denied, failed or reset
//	src.addr       IP:port; src.workload, src.namespace, src.identity, and the
//	               same with dst., as far as they are known
//	dst.service    hostname of the service that was called, if one was
//	bytes_sent     from source to destination, whichever node reports
//	bytes_recv     from destination to source
//	duration_ms    from accepting the connection to its end
//	phases_us      what the proxy added: resolve, connect, handshake,
//	               authorize, dial, answer, those that took place
//	policy, reason, attribute
//	               what a decision was based on
//	dry_run        a dry-run policy that would have decided otherwise
//	error          what went wrong
//
// Denials and failures that repeat (same source address, destination and
// reason) are written a few times per interval, then as one line with
// suppressed, the number of those that were not written.
//
// Metrics are Istio's istio_tcp_* with its standard labels, so that existing
// dashboards go on working, and the proxy's own tacit_*. As Istio has it,
// istio_tcp_received_bytes_total counts what the client sent and
// istio_tcp_sent_bytes_total what it was sent, for both reporters.
//
// What does not belong here: decisions, and anything that a peer can make
// grow: series, lines and tables are bounded.
package telemetry
