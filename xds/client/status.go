package client

import (
	"errors"
	"io"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/xds/wire"
)

// Status is the client's state at one moment.
type Status struct {
	Server string
	// Connected means that the control plane has answered on the present
	// connection; Since is when that began, or when it ended.
	Connected bool
	Since     time.Time
	LastError string // why the last connection ended; empty if none has
	Ended     Ended  // connections that have
	SaveError string // why the last export failed; empty if it did not
	Addresses TypeStatus
	Policies  TypeStatus
	// Names are those asked for on demand, Unanswered those of them of which
	// the control plane has not said what they stand for.
	Names, Unanswered int
}

// Ended counts connections by why they ended.
type Ended struct {
	Unanswered uint64 // there was no response
	Lost       uint64 // with the server, or a balancer's word that it goes elsewhere
	Failed     uint64 // refused by the server, or for what it has sent
	Complete   uint64 // as the server had no more to say
}

// TypeStatus is the state of one type of resources.
type TypeStatus struct {
	Responses uint64    // that have come
	Bytes     uint64    // of the resources in them
	Resources int       // held and applied
	Complete  bool      // the first full list is in
	Nonce     string    // of the last response
	LastAck   time.Time // when a response was last accepted whole
	Nacks     uint64    // responses of which something was rejected
	LastNack  string    // what and why, the last time
}

// Status says how the client is doing.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.status
	out.Server = c.config.Server
	out.Policies = c.kind(wire.AuthorizationType).describe()
	out.Addresses = c.kind(wire.AddressType).describe()
	out.Names = len(c.names)
	for _, n := range c.names {
		if !n.heard {
			out.Unanswered++
		}
	}
	return out
}

func (k *kind) describe() TypeStatus {
	out := k.status
	out.Resources, out.Complete = len(k.resources), k.isComplete
	return out
}

// came counts a response.
func (s *TypeStatus) came(response *discovery.DeltaDiscoveryResponse) {
	s.Responses++
	for _, r := range response.GetResources() {
		s.Bytes += uint64(len(r.GetResource().GetValue()))
	}
}

func (s *TypeStatus) note(nonce, rejection string, now time.Time) {
	s.Nonce = nonce
	if rejection == "" {
		s.LastAck = now
		return
	}
	s.Nacks++
	s.LastNack = rejection
}

// connected notes an answer of the server; the caller holds the lock.
func (c *Client) connected() {
	if !c.status.Connected {
		c.status.Connected, c.status.Since = true, time.Now()
		c.log.Info("xDS server connected")
	}
}

func (c *Client) disconnected(responses int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Ended.note(responses, err)
	if c.status.Connected {
		c.status.Connected, c.status.Since = false, time.Now()
	}
	c.status.LastError = errorText(err)
}

func (e *Ended) note(responses int, err error) {
	switch code := status.Code(err); {
	case responses == 0:
		e.Unanswered++
	case errors.Is(err, io.EOF):
		e.Complete++
	case code == codes.Unavailable || code == codes.Canceled || code == codes.DeadlineExceeded:
		e.Lost++
	default:
		e.Failed++
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
