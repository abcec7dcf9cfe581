package telemetry

import (
	"errors"
	"net/netip"
	"strconv"
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

// One source that is denied at any number of ports leaves a few records, and
// the number of the others; who is denied after that is recorded as ever.
func TestAuditOfOneSourceIsBounded(t *testing.T) {
	log, records := audittest.New(t)
	w := newWorld(t, func(o *Options) { o.Audit = log })
	deny := func(source string, port uint16) {
		r := w.record()
		r.Source.Addr = netip.AddrPortFrom(netip.MustParseAddr(source), 40000)
		r.Destination.Addr = netip.AddrPortFrom(r.Destination.Addr.Addr(), port)
		r.Outcome, r.Policy, r.Reason = Denied, "shop/nobody", "denied"
		w.Closed(r)
	}
	const greedy, other, times = "198.18.7.1", "198.18.7.2", 3
	const ports = 3 * floodKinds
	for range times {
		for port := range uint16(ports) {
			deny(greedy, 1+port)
		}
	}
	for port := range uint16(times) {
		deny(other, 1+port)
	}
	w.auditRepeated()

	denied, summed, written := map[string]int{}, 0, 0
	for _, r := range records() {
		source := r.Fields["src.ip"]
		if addr, err := netip.ParseAddrPort(r.Fields["src.addr"]); err == nil {
			source = addr.Addr().String()
		}
		switch r.Event {
		case audit.EventDenied:
			denied[source]++
		case audit.EventRepeated:
			n, err := strconv.Atoi(r.Fields["records"])
			if err != nil || source != greedy {
				t.Errorf("repeated: %v", r.Fields)
			}
			summed += n
		}
		if source == greedy {
			written++
		}
	}
	if denied[other] != times {
		t.Errorf("%d records of the other source, want %d", denied[other], times)
	}
	if denied[greedy]+summed != ports*times {
		t.Errorf("%d denials are recorded and %d counted, of %d", denied[greedy], summed, ports*times)
	}
	if written > 2*auditAllowed+1 {
		t.Errorf("one source has left %d records, want %d at most", written, 2*auditAllowed+1)
	}
}
