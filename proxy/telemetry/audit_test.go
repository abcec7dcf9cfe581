package telemetry

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/tacit-mesh/tacit/internal/audit"
	"github.com/tacit-mesh/tacit/internal/audit/audittest"
)

// Of connections and requests those are recorded that were denied, or let
// through for a bypass alone; a flood of the same is counted.
func TestAudit(t *testing.T) {
	log, records := audittest.New(t)
	w := newWorld(t, func(o *Options) { o.Audit = log })
	end := func(change func(*Record)) {
		r := w.record()
		change(r)
		w.Closed(r)
	}
	end(func(r *Record) {})
	end(func(r *Record) { r.Outcome, r.Direction = Denied, Outbound }) // told of where it was decided
	end(func(r *Record) { r.Reason, r.Bypass, r.DryRun = "bypassed", "shop/b", "shop/nobody" })
	for range floodAllowed + 3 {
		end(func(r *Record) {
			r.Outcome, r.Policy, r.Reason, r.Err = Denied, "shop/nobody", "denied", errors.New("denied by policy")
		})
	}
	w.Requested(&Request{Connection: w.record(), Method: "GET", Path: "/a", Status: 403, Denied: true, Policy: "shop/p", Reason: "denied"})
	w.Requested(&Request{Connection: w.record(), Method: "GET", Path: "/b", Status: 200, Reason: "allowed"})
	w.HandshakeFailed(Inbound, netip.MustParseAddrPort("198.18.0.1:1"), netip.MustParseAddrPort("198.18.0.2:15008"), "revoked", errors.New("revoked"))
	w.auditRepeated()

	var events []string
	for _, r := range records() {
		events = append(events, r.Event)
		switch r.Event {
		case audit.EventDenied:
			if r.Fields["src.workload"] != "shop/web-1" || r.Fields["src.identity"] == "" || r.Fields["dst.addr"] == "" || r.Fields["policy"] == "" {
				t.Errorf("a denial: %v", r.Fields)
			}
		case audit.EventBypassed:
			if r.Fields["bypass"] != "shop/b" || r.Fields["without_bypass"] != "shop/nobody" {
				t.Errorf("let through: %v", r.Fields)
			}
		case audit.EventRepeated:
			if r.Fields["records"] != "3" || r.Fields["policy"] != "shop/nobody" {
				t.Errorf("repeated: %v", r.Fields)
			}
		case audit.EventHandshake:
			if r.Fields["reason"] != "revoked" {
				t.Errorf("a handshake: %v", r.Fields)
			}
		}
	}
	count := map[string]int{}
	for _, e := range events {
		count[e]++
	}
	for event, want := range map[string]int{
		audit.EventDenied: floodAllowed + 1, audit.EventBypassed: 1, audit.EventRepeated: 1, audit.EventHandshake: 1,
	} {
		if count[event] != want {
			t.Errorf("%d records of %s, want %d: %v", count[event], event, want, events)
		}
	}
}
