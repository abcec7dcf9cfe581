package hour

import (
	"slices"
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/api/sight"
)

// Denial is a connection or request that was denied.
type Denial struct {
	ID          string      `json:"id"`
	Node        string      `json:"node"`
	Time        time.Time   `json:"time"`
	Inbound     bool        `json:"inbound"` // told by the server's node
	Source      flows.Party `json:"source"`
	Destination flows.Party `json:"destination"`

	SourcePod          string `json:"sourcePod,omitempty"`
	DestinationPod     string `json:"destinationPod,omitempty"`
	SourceAddress      string `json:"sourceAddress,omitempty"`
	DestinationAddress string `json:"destinationAddress,omitempty"`
	SourceIdentity     string `json:"sourceIdentity,omitempty"`

	Security  string `json:"security"`
	Why       string `json:"why,omitempty"` // it was not mTLS
	Policy    string `json:"policy,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Attribute string `json:"attribute,omitempty"`
	Error     string `json:"error,omitempty"`
	// Method and Status are of a request.
	Method string `json:"method,omitempty"`
	Status uint32 `json:"status,omitempty"`
	// Weight is how many denials this one stands for.
	Weight uint32 `json:"weight"`
}

// ring has the last denials of a party, oldest first.
type ring struct{ last []*Denial }

func (h *Hour) deny(node string, said *sight.Denial, now time.Time) {
	d := &Denial{
		ID: text(said.GetId()), Node: node, Time: time.UnixMicro(said.GetTimeMicros()).UTC(), Inbound: said.GetInbound(),
		Source: party(said.GetSource()), Destination: party(said.GetDestination()),
		SourcePod: text(said.GetSourcePod()), DestinationPod: text(said.GetDestinationPod()),
		SourceAddress: text(said.GetSourceAddress()), DestinationAddress: text(said.GetDestinationAddress()),
		SourceIdentity: text(said.GetSourceIdentity()), Security: text(said.GetSecurity()), Why: text(said.GetWhy()),
		Policy: text(said.GetPolicy()), Reason: text(said.GetReason()), Attribute: text(said.GetAttribute()), Error: text(said.GetError()),
		Method: text(said.GetMethod()), Status: said.GetStatus(), Weight: max(said.GetWeight(), 1),
	}
	if d.Time.After(now) || now.Sub(d.Time) > Length {
		return
	}
	h.file(d.Destination, d)
	if d.Source != d.Destination {
		h.file(d.Source, d)
	}
}

func (h *Hour) file(p flows.Party, d *Denial) {
	if p == (flows.Party{}) || p == flows.Other {
		return
	}
	r := h.denials[p]
	if r == nil {
		if len(h.denials) >= maxParties {
			h.forgetOldest()
		}
		r = &ring{}
		h.denials[p] = r
	}
	at, _ := slices.BinarySearchFunc(r.last, d, func(a, b *Denial) int { return a.Time.Compare(b.Time) })
	r.last = slices.Insert(r.last, at, d)
	r.last = slices.Delete(r.last, 0, max(0, len(r.last)-maxDenials))
}

// forgetOldest makes room for another party, in the place of the one whose last
// denial is the longest ago.
func (h *Hour) forgetOldest() {
	var oldest flows.Party
	var at time.Time
	for p, r := range h.denials {
		if last := r.last[len(r.last)-1].Time; at.IsZero() || last.Before(at) {
			oldest, at = p, last
		}
	}
	delete(h.denials, oldest)
}

// Denials are the last ones that a party is an end of, of the hour before a
// time, newest first. One that both nodes have told of is there once, as the
// server's tells it.
func (h *Hour) Denials(p flows.Party, before time.Time) (out []Denial) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.denials[p]
	if r == nil {
		return nil
	}
	for _, d := range slices.Backward(r.last) {
		if d.Time.After(before) || before.Sub(d.Time) > Length {
			continue
		}
		byServer := func(o *Denial) bool { return o.Inbound && o.ID == d.ID }
		if !d.Inbound && d.ID != "" && slices.ContainsFunc(r.last, byServer) {
			continue
		}
		out = append(out, *d)
	}
	return out
}
