package client

import (
	"time"

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
	SaveError string // why the last export failed; empty if it did not
	Addresses TypeStatus
	Policies  TypeStatus
	// Names are those asked for on demand, Unanswered those of them of which
	// the control plane has not said what they stand for.
	Names, Unanswered int
}

// TypeStatus is the state of one type of resources.
type TypeStatus struct {
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

func (c *Client) disconnected(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status.Connected {
		c.status.Connected, c.status.Since = false, time.Now()
	}
	c.status.LastError = errorText(err)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
