package telemetry

import (
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
)

// Flow is the connection as package flows has it.
func (c *Record) Flow(kind flows.Kind, now time.Time) flows.Event {
	e := flows.Event{
		Kind: kind, ID: connectionID(c.ID), Inbound: c.Direction == Inbound,
		Security: c.Security.String(), Outcome: c.Outcome.String(), Began: c.Start, Time: now,
		Source: c.Source.flow(), Destination: c.Destination.flow(),
		Policy: c.Policy, Reason: c.Reason, Attribute: c.Attribute, DryRun: c.DryRun, Matched: matched(c.Reason),
		Err: c.Err, Sent: c.Sent, Received: c.Received,
	}
	if c.Service != nil {
		e.Service = c.Service.Hostname
	}
	for _, d := range c.Phases {
		e.Added += d
	}
	return e
}

// flow tells the log of a connection, if it takes such events.
func (r *Recorder) flow(c *Record, kind flows.Kind, now time.Time) {
	if r.options.Flows.Takes(kind) {
		event := c.Flow(kind, now)
		r.options.Flows.Add(&event)
	}
}

// matched reports whether a decision for this reason is the work of its
// policy, rather than of none having matched.
func matched(reason string) bool {
	return reason == "allowed" || reason == "denied" || reason == "ask" || reason == "rate_limited"
}

func (e *End) flow() flows.End {
	return flows.End{Addr: e.Addr, Workload: e.Workload, Name: e.Name, Namespace: e.Namespace, Identity: e.Identity}
}

// flow is the request as package flows has it.
func (q *Request) flow(now time.Time) flows.Event {
	e := q.Connection.Flow(flows.Requested, now)
	e.Began, e.Outcome, e.Err, e.Added = q.Start, q.outcome().String(), q.Err, 0
	e.Policy, e.Reason, e.Attribute, e.DryRun, e.Matched = q.Policy, q.Reason, q.Attribute, q.DryRun, matched(q.Reason)
	e.Protocol, e.Method, e.Host, e.Path, e.Status = q.Protocol, q.Method, q.Host, q.Path, q.Status
	e.Sent, e.Received = q.Sent, q.Received
	return e
}
