package flows

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Filter takes flows; nil or zero takes all.
type Filter struct {
	From, To EndFilter
	// Either is of one end, whichever.
	Either EndFilter
	// Identity is one of an end: a SPIFFE id, or what it ends with, such as
	// "ns/shop/sa/frontend".
	Identity string
	Port     uint16 // of the destination or, of a service, as it was asked for
	Outcomes []string
	Security []string
	// Requests and Connections take only those; not both.
	Requests, Connections bool
	Direction             string // "inbound", "outbound" or ""
}

// EndFilter takes an end of a flow by its pod, owner, namespace or address.
type EndFilter struct {
	Namespace, Name string // Name "" is the whole namespace
	Address         netip.Addr
}

// The outcomes and securities that a filter may ask for.
var (
	outcomes   = []string{"ok", "denied", "failed", "reset"}
	securities = []string{"mtls", "local", "plain", "skipped", "passthrough"}
)

// The names of a filter in a query.
const (
	queryFrom, queryTo, queryEither = "from", "to", "either"
	queryIdentity, queryPort        = "identity", "port"
	queryOutcome, querySecurity     = "outcome", "security"
	queryKind, queryDirection       = "kind", "direction"
)

// ParseFilter reads a filter from a query.
func ParseFilter(q url.Values) (*Filter, error) {
	f := &Filter{Identity: q.Get(queryIdentity), Direction: q.Get(queryDirection)}
	for name, end := range map[string]*EndFilter{queryFrom: &f.From, queryTo: &f.To, queryEither: &f.Either} {
		var err error
		if *end, err = parseEnd(q.Get(name)); err != nil {
			return nil, err
		}
	}
	if text := q.Get(queryPort); text != "" {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return nil, fmt.Errorf("port %.20q: want a number from 1 to 65535", text)
		}
		f.Port = uint16(port)
	}
	var err error
	if f.Outcomes, err = words(q.Get(queryOutcome), "outcome", outcomes); err != nil {
		return nil, err
	}
	if f.Security, err = words(q.Get(querySecurity), "security", securities); err != nil {
		return nil, err
	}
	if _, err := words(f.Direction, "direction", []string{"inbound", "outbound"}); err != nil {
		return nil, err
	}
	switch kind := q.Get(queryKind); kind {
	case "":
	case "requests":
		f.Requests = true
	case "connections":
		f.Connections = true
	default:
		return nil, fmt.Errorf("kind %.40q: want requests or connections", kind)
	}
	return f, nil
}

func words(text, what string, known []string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	list := strings.Split(text, ",")
	for _, word := range list {
		if !slices.Contains(known, word) {
			return nil, fmt.Errorf("%s %.40q: want %s", what, word, strings.Join(known, ", "))
		}
	}
	return list, nil
}

func parseEnd(text string) (EndFilter, error) {
	if text == "" {
		return EndFilter{}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return EndFilter{Address: a.Unmap()}, nil
	}
	namespace, name, isPod := strings.Cut(text, "/")
	if !isPod || namespace == "" {
		return EndFilter{}, fmt.Errorf("end %.300q: want NAMESPACE/POD, NAMESPACE/ or an address", text)
	}
	return EndFilter{Namespace: namespace, Name: name}, nil
}

// IsZero reports whether it takes every end.
func (f EndFilter) IsZero() bool { return f == EndFilter{} }

// String is the end as it was asked for.
func (f EndFilter) String() string {
	if f.Address.IsValid() {
		return f.Address.String()
	}
	return f.Namespace + "/" + f.Name
}

// Fits reports whether a workload of the mesh can be such an end.
func (f EndFilter) Fits(w *model.Workload) bool {
	return f.fits(w.Namespace, w.Name, w.WorkloadName) && !f.Address.IsValid()
}

func (f EndFilter) fits(namespace, name, owner string) bool {
	return f.Namespace == namespace && (f.Name == "" || f.Name == name || f.Name == owner)
}

func (f EndFilter) takes(e *recordedEnd) bool {
	switch {
	case f.IsZero():
		return true
	case f.Address.IsValid():
		return f.Address == e.addr.Addr()
	}
	p := e.party.Value()
	return f.fits(p.namespace, p.name, p.owner)
}

func (f *Filter) takes(r *record) bool {
	if f == nil {
		return true
	}
	v := r.verdict.Value()
	switch {
	case !f.From.takes(&r.source), !f.To.takes(&r.destination), !f.Either.takes(&r.source) && !f.Either.takes(&r.destination):
		return false
	case f.Port != 0 && f.Port != r.destination.addr.Port(),
		len(f.Outcomes) > 0 && !slices.Contains(f.Outcomes, v.outcome),
		len(f.Security) > 0 && !slices.Contains(f.Security, v.security),
		f.Requests && r.kind != Requested, f.Connections && r.kind == Requested,
		f.Direction != "" && f.Direction != direction(r.inbound):
		return false
	}
	return f.Identity == "" || r.source.is(f.Identity) || r.destination.is(f.Identity)
}

func (e *recordedEnd) is(wanted string) bool {
	text := e.party.Value().identity.String()
	return text != "" && (text == wanted || strings.HasSuffix(text, "/"+wanted))
}
