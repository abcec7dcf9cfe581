package telemetry

import (
	"strconv"

	"github.com/tacit-mesh/tacit/internal/audit"
)

// auditConnection records what the destination's proxy denied, or let through
// for a bypass alone.
func (r *Recorder) auditConnection(c *Record) {
	if r.options.Audit == nil || c.Outcome != Denied && c.Bypass == "" {
		return
	}
	r.audit(c, c.Outcome == Denied, c.decision(), nil)
}

// auditRequest does the same for a request of HTTP.
func (r *Recorder) auditRequest(q *Request) {
	if r.options.Audit == nil || !q.Denied && q.Bypass == "" {
		return
	}
	d := decision{q.Policy, q.Reason, q.Attribute, q.DryRun, q.Bypass, q.Err}
	r.audit(q.Connection, q.Denied, d, map[string]string{
		"http.method": bounded(q.Method), "http.host": bounded(q.Host), "http.path": bounded(q.Path), "http.status": strconv.Itoa(q.Status),
	})
}

// decision is what was decided and why.
type decision struct {
	policy, reason, attribute, dryRun, bypass string
	err                                       error
}

func (c *Record) decision() decision {
	return decision{c.Policy, c.Reason, c.Attribute, c.DryRun, c.Bypass, c.Err}
}

func (r *Recorder) audit(c *Record, denied bool, d decision, fields map[string]string) {
	event := audit.EventDenied
	if !denied {
		event = audit.EventBypassed
	}
	if !r.audited.admit(kind{event, c.Direction, c.Source.Addr.Addr(), c.Destination.Addr, d.reason, d.policy}) {
		return // counted
	}
	if fields == nil {
		fields = map[string]string{}
	}
	fields["id"] = connectionID(c.ID)
	fields["security"] = c.Security.String()
	auditEnd(fields, "src", &c.Source)
	auditEnd(fields, "dst", &c.Destination)
	fields["policy"], fields["reason"], fields["attribute"] = d.policy, d.reason, d.attribute
	fields["without_bypass"], fields["bypass"] = d.dryRun, d.bypass
	if denied && d.err != nil {
		fields["error"] = errorText(d.err)
	}
	r.options.Audit.Write(event, fields)
}

func auditEnd(fields map[string]string, name string, e *End) {
	pod, namespace := e.Name, e.Namespace
	if w := e.Workload; w != nil {
		pod, namespace = w.Name, w.Namespace
	}
	fields[name+".addr"] = e.Addr.String()
	fields[name+".identity"] = e.Identity.String()
	if pod != "" {
		fields[name+".workload"] = namespace + "/" + pod
	}
}

// auditHandshake records who was refused before there was a connection, such as
// for a certificate that was revoked.
func (r *Recorder) auditHandshake(t trouble) {
	if r.options.Audit == nil || !r.audited.admit(kind{audit.EventHandshake, t.direction, t.source.Addr(), t.destination, t.reason, ""}) {
		return
	}
	fields := map[string]string{
		"direction": t.direction.String(), "src.addr": t.source.String(), "dst.addr": t.destination.String(), "reason": t.reason,
	}
	if t.err != nil {
		fields["error"] = errorText(t.err)
	}
	r.options.Audit.Write(audit.EventHandshake, fields)
}

// auditRepeated records how much more there was of each kind.
func (r *Recorder) auditRepeated() {
	for _, held := range r.audited.flush() {
		fields := map[string]string{
			"event": held.kind.message, "records": strconv.Itoa(held.count), "reason": held.kind.reason, "policy": held.kind.policy,
		}
		if held.kind.source.IsValid() {
			fields["src.ip"] = held.kind.source.String()
		}
		if held.kind.destination.IsValid() {
			fields["dst.addr"] = held.kind.destination.String()
		}
		r.options.Audit.Write(audit.EventRepeated, fields)
	}
}
