package flows

import "github.com/tacit-mesh/tacit/xds/model"

// Why a connection was not mTLS. The words are stable: they are labels of
// metrics, too.
const (
	WhyServerSkips      = "server_skips_port"    // the server's inbound skip list has the port
	WhyClientSkips      = "client_skips_port"    // the client's outbound skip list has it
	WhyServerOutside    = "server_outside_mesh"  // no workload that the control plane knows
	WhyServerNotInMesh  = "server_not_enrolled"  // a pod that is not captured
	WhyServerHost       = "server_host_network"  // on its node's own network
	WhyClientOutside    = "client_outside_mesh"  // no workload that the control plane knows
	WhyClientNotInMesh  = "client_not_enrolled"  // a pod that is not captured
	WhyClientNotCaught  = "client_not_captured"  // it is enrolled, and yet came in clear
	WhyServerAsksForTCP = "server_plain_by_mesh" // it is enrolled, and the mesh sent it in clear
	WhyServerBypassed   = "server_bypassed"      // a Bypass is in force for it
	WhyClientBypassed   = "client_bypassed"      // a Bypass is in force for it
)

// why classifies an event by the mesh as it was then.
func why(e *Event) string {
	switch e.Security {
	case "mtls", "local":
		return ""
	case "skipped":
		return WhyServerSkips
	case "passthrough":
		return WhyServerOutside
	}
	if !e.Inbound {
		return whyServer(e.Destination.Workload)
	}
	return whyClient(e)
}

func whyServer(w *model.Workload) string {
	switch {
	case w == nil:
		return WhyServerOutside
	case w.HostNetwork:
		return WhyServerHost
	case w.Bypass != "":
		return WhyServerBypassed
	case w.Protocol == model.ProtocolHBONE:
		return WhyServerAsksForTCP
	}
	return WhyServerNotInMesh
}

func whyClient(e *Event) string {
	w := e.Source.Workload
	switch {
	case w == nil:
		return WhyClientOutside
	case w.Bypass != "":
		return WhyClientBypassed
	case w.Protocol != model.ProtocolHBONE:
		return WhyClientNotInMesh
	case w.SkipsOutbound(e.Destination.Addr):
		return WhyClientSkips
	}
	return WhyClientNotCaught
}
