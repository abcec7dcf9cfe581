package proxy

import (
	"net/netip"

	"github.com/tacit-mesh/tacit/internal/portions"
)

// A pod's share bounds what is held for it, so that neither the pod nor those
// who call it can use up what others need.
type share struct {
	// One slot for each connection that the pod makes; callers take from
	// another share, so that they cannot keep the pod from calling.
	outbound chan struct{}
	// One slot for each connection to the pod: captured, mTLS, and each
	// stream of mTLS, which has a connection to the application.
	inbound    chan struct{}
	handshakes *portions.Portions[netip.Addr]
	// Bytes of bodies that have come in front of decisions: those that a provider
	// is to see, and those that came meanwhile, of requests that are decided on
	// without. They are held until they are on their way, which is as far as the
	// application has given window for them.
	bodies, unseen *portions.Portions[netip.Addr]
	names          *heldNames
	// One slot for each question about a request that a provider is asked.
	asking *turns[netip.Addr]
}

// maxAsking bounds those: a provider that does not answer holds up the requests
// of the pods that it decides for, and no others; nor does one caller, about
// whose requests it does not answer, hold up the other callers.
const maxAsking = 250

// maxBodies bounds those, maxBodiesFromSource the ones of one caller, who could
// else keep all others from asking, and maxBody the ones of one request.
const (
	maxBodies           = 16 << 20
	maxBodiesFromSource = 4 << 20
	maxBody             = 1 << 20
)

// maxUnseen and maxUnseenFromSource are the same for those that no decision looks
// at, of which a request has 16 KiB at most: enough for all the streams of one
// connection. They have a share of their own, so that nothing large keeps the
// many small ones out that only wait for their turn.
const (
	maxUnseen           = 32 << 20
	maxUnseenFromSource = 16 << 20
)

func newShare(conns int) *share {
	return &share{
		outbound: make(chan struct{}, conns), inbound: make(chan struct{}, conns),
		handshakes: portions.New[netip.Addr](maxHandshakes, maxHandshakesFromSource, false),
		bodies:     portions.New[netip.Addr](maxBodies, maxBodiesFromSource, true),
		unseen:     portions.New[netip.Addr](maxUnseen, maxUnseenFromSource, true),
		asking:     newTurns[netip.Addr](maxAsking),
		names:      &heldNames{holders: map[string]int{}},
	}
}

// take takes a slot if there is one; give gives it back.
func take(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func give(slots chan struct{}) { <-slots }

// Handshakes under way at a time, to one pod: callers that have proven nothing
// yet. A peer's pool makes one at a time, so that a source with many is none.
const (
	maxHandshakes           = 1024
	maxHandshakesFromSource = 64
)
