package admin

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/internal/version"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Status is the answer to /status.
type Status struct {
	Version string    `json:"version"`
	Node    string    `json:"node"`
	Started time.Time `json:"started"`
	// Generation counts the updates of the mesh that were applied.
	Generation     uint64 `json:"generation"`
	AddressesReady bool   `json:"addressesReady"`
	PoliciesReady  bool   `json:"policiesReady"`
	Workloads      int    `json:"workloads"`
	Services       int    `json:"services"`
	Policies       int    `json:"policies"`
	Inbound        int    `json:"inbound"`  // live connections
	Outbound       int    `json:"outbound"` // live connections
	// RecentDenials are those among the ended connections still remembered.
	RecentDenials int `json:"recentDenials"`
	// Bypasses are those in force in the mesh, at most maxBypasses.
	Bypasses []string                   `json:"bypasses,omitempty"`
	Sections map[string]json.RawMessage `json:"sections,omitempty"`
}

// maxBypasses bounds how many are named.
const maxBypasses = 100

// The directions of a connection, as seen from its pod on this node.
const (
	Inbound  = "inbound"
	Outbound = "outbound"
)

// Connection is one side of a connection, live or ended.
type Connection struct {
	ID          string `json:"id"` // the same on both nodes
	Direction   string `json:"direction"`
	Source      End    `json:"source"`
	Destination End    `json:"destination"`
	// Original is where the client connected to; on outbound only.
	Original netip.AddrPort `json:"original,omitzero"`
	// Tunnel is where its HBONE connection goes, which may be a waypoint or a
	// gateway; on outbound only.
	Tunnel netip.AddrPort `json:"tunnel,omitzero"`
	// Security is how the bytes travel between the nodes, such as
	// "mutual_tls" or "none".
	Security string `json:"security,omitempty"`
	// Policy is the key of the policy that decided, if one did.
	Policy string `json:"policy,omitempty"`
	Denied bool   `json:"denied,omitempty"`
	// Reason is why it was denied, in the words of the decision ("denied by
	// policy ..."), or why it ended otherwise than by its two ends.
	Reason   string    `json:"reason,omitempty"`
	Since    time.Time `json:"since"`
	Ended    time.Time `json:"ended,omitzero"` // zero while it lives
	Sent     uint64    `json:"sent"`           // bytes, from the source
	Received uint64    `json:"received"`       // bytes, to the source
}

// End is one end of a connection.
type End struct {
	Address  netip.AddrPort `json:"address,omitzero"`
	Workload string         `json:"workload,omitempty"` // "NAMESPACE/NAME"
	Identity string         `json:"identity,omitempty"` // SPIFFE id, as proven
	Service  string         `json:"service,omitempty"`  // hostname; of a destination
}

// bypasses are those that are in force for a workload.
func bypasses(s *model.Snapshot) []string {
	names := map[string]struct{}{}
	for _, w := range s.Workloads() {
		if w.Bypass != "" && len(names) < maxBypasses {
			names[w.Bypass] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func (s *Server) status(started time.Time) Status {
	snapshot := s.Snapshot()
	status := Status{
		Version:        version.String(),
		Node:           s.Node,
		Started:        started.UTC().Truncate(time.Second),
		Generation:     snapshot.Generation(),
		AddressesReady: snapshot.AddressesReady(),
		PoliciesReady:  snapshot.PoliciesReady(),
		Workloads:      len(snapshot.Workloads()),
		Services:       len(snapshot.Services()),
		Policies:       len(snapshot.Policies()),
		Bypasses:       bypasses(snapshot),
	}
	for _, c := range call(s.Live) {
		if c.Direction == Inbound {
			status.Inbound++
		} else {
			status.Outbound++
		}
	}
	for _, c := range call(s.Ended) {
		if c.Denied {
			status.RecentDenials++
		}
	}
	if s.Sections != nil {
		status.Sections = sections(s.Sections())
	}
	return status
}

// sections encodes each part by itself, so that one which cannot be encoded
// does not take the others with it.
func sections(parts map[string]any) map[string]json.RawMessage {
	out := make(map[string]json.RawMessage, len(parts))
	for name, part := range parts {
		text, err := json.Marshal(part)
		if err != nil {
			text, _ = json.Marshal(map[string]string{"error": err.Error()})
		}
		out[name] = text
	}
	return out
}

// connections answers with the live connections, oldest first; with ?denied
// or ?ended, with ended ones instead. ?from and ?to select by workload
// ("NAMESPACE/NAME", or "NAMESPACE/" for a whole namespace) or by address.
func (s *Server) connections(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	list := s.Live
	if query.Has("denied") || query.Has("ended") {
		list = s.Ended
	}
	chosen := slices.DeleteFunc(slices.Clone(call(list)), func(c Connection) bool {
		return query.Has("denied") && !c.Denied || !c.Source.fits(query.Get("from")) || !c.Destination.fits(query.Get("to")) ||
			!c.Source.fits(query.Get("either")) && !c.Destination.fits(query.Get("either"))
	})
	slices.SortFunc(chosen, func(a, b Connection) int {
		if order := a.Since.Compare(b.Since); order != 0 {
			return order
		}
		return strings.Compare(a.ID+a.Direction, b.ID+b.Direction)
	})
	stream(w, func(e *encoder) { writeList(e, "connections", chosen, asIs) })
}

func (e End) fits(filter string) bool {
	switch {
	case filter == "" || filter == e.Workload:
		return true
	case strings.HasSuffix(filter, "/"):
		return strings.HasPrefix(e.Workload, filter)
	}
	return e.Address.IsValid() && (filter == e.Address.String() || filter == e.Address.Addr().String())
}

func call(f func() []Connection) []Connection {
	if f == nil {
		return nil
	}
	return f()
}
