package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/internal/audit"
	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/xds/kinds"
)

// auditRecords tells the audit log of each bypass and revocation when another
// thing is true of it than before: that it began, ended, or is refused. The
// caller holds mu.
func (m *mesh) auditRecords(s *status) {
	if m.audit == nil || !s.Serving {
		return
	}
	now := map[string]string{}
	for _, p := range s.Policies {
		fields, event := m.record(p)
		if fields == nil {
			continue
		}
		fields["kind"], fields["name"] = p.Kind, p.Namespace+"/"+p.Name
		fields["in_force"] = strconv.FormatBool(p.Enforced)
		fields["says"] = strings.Join(p.Messages, "; ")
		key := fields["kind"] + " " + fields["name"]
		now[key] = fields["in_force"] + " " + fields["says"] + " " + fields["until"]
		if m.audited[key] != now[key] {
			m.audit.Write(event, fields)
		}
	}
	for key := range m.audited {
		if _, there := now[key]; !there {
			kind, name, _ := strings.Cut(key, " ")
			event := audit.EventBypass
			if kind == "RevokedIdentity" {
				event = audit.EventRevocation
			}
			m.audit.Write(event, map[string]string{"kind": kind, "name": name, "in_force": "false", "says": "the object is gone"})
		}
	}
	m.audited = now
}

// record is what somebody has written; nil for what is no such record.
func (m *mesh) record(p policyStatus) (fields map[string]string, event string) {
	switch o := m.build.Object(p.Kind, p.Namespace, p.Name).(type) {
	case *bypass.Bypass:
		fields = map[string]string{
			"pod": o.Spec.Pod, "policy_only": strconv.FormatBool(o.Spec.PolicyOnly),
			"by": o.Spec.By, "reason": o.Spec.Reason, "ended_by": o.Spec.EndedBy,
		}
		if o.Spec.Until != nil {
			fields["until"] = o.Spec.Until.UTC().Format(time.RFC3339)
		}
		return fields, audit.EventBypass
	case *kinds.RevokedIdentity:
		fields = map[string]string{
			"identity": o.Spec.Identity, "by": o.Spec.By, "reason": o.Spec.Reason, "restored_by": o.Spec.RestoredBy,
		}
		if o.Spec.Until != nil {
			fields["until"] = o.Spec.Until.UTC().Format(time.RFC3339)
		}
		return fields, audit.EventRevocation
	}
	return nil, ""
}
