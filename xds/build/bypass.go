package build

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/xds/model"
)

// setBypass notes a Bypass, nil for one that is gone.
func (m *Mesh) setBypass(name objectName, b *bypass.Bypass) {
	if before := m.bypasses[name]; before != nil {
		m.staleBypassed(before)
	}
	if b == nil {
		delete(m.bypasses, name)
		return
	}
	m.bypasses[name] = b
	m.staleBypassed(b)
}

// staleBypassed has the pods derived again that a bypass is about.
func (m *Mesh) staleBypassed(b *bypass.Bypass) {
	m.statuses = nil
	for e := range m.podsIn[b.Namespace] {
		if b.Covers(e.name.namespace, e.name.name) {
			m.stale.pods[e] = true
		}
	}
}

// bypass has a pod's workload bypassed if any Bypass says so now: policies deny
// nothing at it, and peers are told to use plain TCP where its connections are
// not captured. Of several it is the one with the first name that is told of.
func (m *Mesh) bypass(e *podEntry) {
	if !e.permitted {
		return
	}
	for _, b := range m.bypasses {
		if !b.Covers(e.name.namespace, e.name.name) {
			continue
		}
		phase := b.Phase(m.policies.now, m.settings.MaxBypass)
		if phase == bypass.Off {
			continue
		}
		if phase == bypass.Plain {
			e.alone.Protocol = model.ProtocolTCP
		}
		if e.alone.Bypass == "" || b.String() < e.alone.Bypass {
			e.alone.Bypass = b.String()
		}
	}
}

// bypassStatuses says of each Bypass whether it is in force.
func (m *Mesh) bypassStatuses() (out []PolicyStatus) {
	for _, b := range m.bypasses {
		st := newStatus("Bypass", &b.ObjectMeta)
		st.Layer = ""
		m.bypassStatus(&st, b)
		out = append(out, st)
	}
	return out
}

func (m *Mesh) bypassStatus(st *PolicyStatus, b *bypass.Bypass) {
	now := m.policies.now
	if err := b.Check(m.settings.MaxBypass); err != nil {
		st.say("not in force: %v", err)
		return
	}
	begin, until := b.Begin().UTC().Format(time.RFC3339), b.Spec.Until.UTC().Format(time.RFC3339)
	switch phase := b.Phase(now, m.settings.MaxBypass); {
	case phase == bypass.Off && now.Before(b.Begin()) && b.Begin().Before(b.Spec.Until.Time):
		st.say("not in force yet: it begins at %s", begin)
	case phase == bypass.Off:
		st.say("not in force any more: it ended at %s", until)
	default:
		st.Enforced = true
		if !m.coversAny(b) {
			st.say("it covers no pod that is in the mesh: %s", coversNone(b))
		}
	}
}

// coversAny reports whether a bypass covers any pod of the mesh.
func (m *Mesh) coversAny(b *bypass.Bypass) bool {
	for e := range m.podsIn[b.Namespace] {
		if e.permitted && b.Covers(e.name.namespace, e.name.name) {
			return true
		}
	}
	return false
}

func coversNone(b *bypass.Bypass) string {
	if b.Spec.Pod == "" {
		return fmt.Sprintf("namespace %s has none", b.Namespace)
	}
	return fmt.Sprintf("%s/%s is none", b.Namespace, b.Spec.Pod)
}

// Bypassed is how many workloads are under a Bypass.
func (m *Mesh) Bypassed() (n int) {
	for _, e := range m.pods {
		if e.workload != nil && e.workload.Bypass != "" {
			n++
		}
	}
	return n
}

// Bypasses are the bypasses that are in force.
func (m *Mesh) Bypasses() (out []*bypass.Bypass) {
	for _, b := range m.bypasses {
		if b.Phase(m.policies.now, m.settings.MaxBypass) != bypass.Off {
			out = append(out, b)
		}
	}
	byName(out)
	return out
}

// Object is a policy, revocation or bypass as it was written; nil if there is
// none of the name.
func (m *Mesh) Object(kind, namespace, name string) metav1.Object {
	if b := m.bypasses[objectName{namespace, name}]; b != nil && kind == "Bypass" {
		return b
	}
	return m.policies.objects[objectKey{kind, objectName{namespace, name}}]
}
