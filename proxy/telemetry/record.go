package telemetry

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/tacit-mesh/tacit/proxy/tracing"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Direction is the side of a connection that this proxy serves.
type Direction uint8

// Outbound connections come from a pod of this node, inbound ones go to one.
const (
	Outbound Direction = iota
	Inbound
	directions
)

func (d Direction) String() string { return name(d, "outbound", "inbound") }

// Security is how a connection's bytes travel.
type Security uint8

// The ways. Local is authorized over mTLS and then joined within the process.
const (
	Plain       Security = iota // no mesh on the other side
	MTLS                        // HBONE
	Local                       // both pods are on this node
	Skipped                     // a skip list covers the other side's port
	Passthrough                 // to an address that the mesh does not know
	securities
)

func (s Security) String() string {
	return name(s, "plain", "mtls", "local", "skipped", "passthrough")
}

// Outcome is how a connection ended.
type Outcome uint8

// The outcomes. A failure is one to be connected at all; what ends abruptly
// after that is a reset.
const (
	OK Outcome = iota
	Denied
	Failed
	Reset
)

func (o Outcome) String() string { return name(o, "ok", "denied", "failed", "reset") }

// Phase is a part of the latency that the proxy adds to a connection.
type Phase uint8

// The phases, in the order in which a connection meets them.
const (
	PhaseResolve   Phase = iota // destination to endpoint
	PhaseConnect                // a connection to the peer, or one from the pool
	PhaseHandshake              // TLS
	PhaseAuthorize              // the decision, and waiting for what it needs
	PhaseDial                   // the application
	PhaseAnswer                 // from CONNECT to its answer
	Phases
)

func (p Phase) String() string {
	return name(p, "resolve", "connect", "handshake", "authorize", "dial", "answer")
}

func name[T ~uint8](v T, names ...string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return "unknown"
}

// End is one end of a connection: verified facts, not what a peer says of
// itself.
type End struct {
	Addr     netip.AddrPort
	Workload *model.Workload // nil if the control plane knows none there
	// Identity is the certificate's; zero without one.
	Identity model.Identity
	// Name and Namespace are a pod's as its node's agent knows them, for
	// where there is no Workload.
	Name, Namespace string
}

// Record is the story of one connection. Its owner fills it in as the story
// goes on, and calls the Recorder from one goroutine at a time, Progress
// apart. A zero phase has not taken place.
type Record struct {
	// ID is 32 hex digits; anything else that a peer may have sent for it is
	// left out of logs.
	ID          string
	Direction   Direction
	Security    Security
	Outcome     Outcome
	Closest     bool // Policy decided nothing, and only came closest to allowing
	ended       bool
	Start       time.Time
	Source      End
	Destination End
	Service     *model.Service // the one that was called, if one was

	// The decision: see package policy. Reason also names failures.
	Policy, Reason, Attribute, DryRun string
	Bypass                            string // that let it through, if one did
	Err                               error

	Span *tracing.Span // to be told of; nil for none

	Sent     int64 // bytes from Source to Destination
	Received int64 // bytes from Destination to Source
	Phases   [Phases]time.Duration

	series   *series      // since Opened
	sent     atomic.Int64 // counted so far
	received atomic.Int64
}
