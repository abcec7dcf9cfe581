package wire

import (
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/tacit-mesh/tacit/xds/api/security"
	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/model"
)

func encodeMatch(m *model.Match) (*security.Match, error) {
	out := &security.Match{
		Namespaces:          encodeEach(m.Namespaces, encodeString),
		NotNamespaces:       encodeEach(m.NotNamespaces, encodeString),
		Principals:          encodeEach(m.Principals, encodeString),
		NotPrincipals:       encodeEach(m.NotPrincipals, encodeString),
		ServiceAccounts:     encodeEach(m.ServiceAccounts, encodeAccount),
		NotServiceAccounts:  encodeEach(m.NotServiceAccounts, encodeAccount),
		SourceIps:           encodeEach(m.SourceIPs, encodePrefix),
		NotSourceIps:        encodeEach(m.NotSourceIPs, encodePrefix),
		DestinationIps:      encodeEach(m.DestinationIPs, encodePrefix),
		NotDestinationIps:   encodeEach(m.NotDestinationIPs, encodePrefix),
		DestinationPorts:    encodeEach(m.DestinationPorts, encodeMatchPort),
		NotDestinationPorts: encodeEach(m.NotDestinationPorts, encodeMatchPort),
	}
	ext := &tacit.MatchExtension{
		SourceLabels:    encodeEach(m.SourceLabels, encodeLabel),
		NotSourceLabels: encodeEach(m.NotSourceLabels, encodeLabel),
		Times:           encodeEach(m.Times, encodeWindow),
		NotTimes:        encodeEach(m.NotTimes, encodeWindow),
		Unknown:         m.Unknown,
	}
	if err := extend(out, matchExtension, ext); err != nil || m.HTTP == nil {
		return out, err
	}
	config, err := pack(encodeHTTPMatch(m.HTTP))
	out.Extensions = append(out.Extensions, &security.Extension{Name: httpExtension, Config: config})
	return out, err
}

// extend adds an extension that is not empty.
func extend(out *security.Match, name string, ext proto.Message) error {
	if proto.Size(ext) == 0 {
		return nil
	}
	config, err := pack(ext)
	out.Extensions = append(out.Extensions, &security.Extension{Name: name, Config: config})
	return err
}

func decodeMatch(m *security.Match, path string) model.Match {
	unknown := reasons{anyUnknown(m.ProtoReflect(), path)}
	d := matchDecoder{path: path, unknown: &unknown}
	out := model.Match{
		Namespaces:          values(d, "namespaces", m.GetNamespaces(), decodeString),
		NotNamespaces:       values(d, "not_namespaces", m.GetNotNamespaces(), decodeString),
		Principals:          values(d, "principals", m.GetPrincipals(), decodeString),
		NotPrincipals:       values(d, "not_principals", m.GetNotPrincipals(), decodeString),
		ServiceAccounts:     values(d, "service_accounts", m.GetServiceAccounts(), decodeAccount),
		NotServiceAccounts:  values(d, "not_service_accounts", m.GetNotServiceAccounts(), decodeAccount),
		SourceIPs:           values(d, "source_ips", m.GetSourceIps(), decodePrefix),
		NotSourceIPs:        values(d, "not_source_ips", m.GetNotSourceIps(), decodePrefix),
		DestinationIPs:      values(d, "destination_ips", m.GetDestinationIps(), decodePrefix),
		NotDestinationIPs:   values(d, "not_destination_ips", m.GetNotDestinationIps(), decodePrefix),
		DestinationPorts:    values(d, "destination_ports", m.GetDestinationPorts(), decodeMatchPort),
		NotDestinationPorts: values(d, "not_destination_ports", m.GetNotDestinationPorts(), decodeMatchPort),
	}
	seen := map[string]bool{}
	for i, e := range m.GetExtensions() {
		at, name := fmt.Sprintf("%s.extensions[%d]", path, i), e.GetName()
		switch {
		case seen[name]:
			unknown.add("%s: %s is given twice", at, name)
		case name == matchExtension:
			decodeMatchExtension(matchDecoder{at + ".config", &unknown}, e, &out)
		case name == httpExtension:
			decodeHTTPMatch(matchDecoder{at + ".config", &unknown}, e, &out)
		default:
			unknown.add("%s: unknown extension %q", at, name)
		}
		seen[name] = true
	}
	out.Unknown = unknown.first()
	return out
}

func decodeMatchExtension(d matchDecoder, e *security.Extension, out *model.Match) {
	var ext tacit.MatchExtension
	if err := e.GetConfig().UnmarshalTo(&ext); err != nil {
		d.unknown.add("%s: %v", d.path, err)
		return
	}
	*d.unknown = append(*d.unknown, anyUnknown(ext.ProtoReflect(), d.path), ext.GetUnknown())
	out.SourceLabels = values(d, "source_labels", ext.GetSourceLabels(), decodeLabel)
	out.NotSourceLabels = values(d, "not_source_labels", ext.GetNotSourceLabels(), decodeLabel)
	out.Times = values(d, "times", ext.GetTimes(), decodeWindow)
	out.NotTimes = values(d, "not_times", ext.GetNotTimes(), decodeWindow)
}

type matchDecoder struct {
	path    string
	unknown *reasons
}

// values translates one attribute's list; a value that cannot be read makes
// the match unknown.
func values[P, M any](d matchDecoder, field string, in []P, decode func(P) (M, error)) []M {
	out, err := decodeEach(d.path+"."+field, in, decode)
	if err != nil {
		d.unknown.add("%v", err)
	}
	return out
}

func encodeString(m model.StringMatch) *security.StringMatch {
	switch m.Kind {
	case model.MatchExact:
		return &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: m.Value}}
	case model.MatchPrefix:
		return &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: m.Value}}
	case model.MatchSuffix:
		return &security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: m.Value}}
	case model.MatchPresence:
		return &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}
	case model.MatchTemplate:
	}
	return &security.StringMatch{} // decodes as an error
}

// maxValue bounds what something is compared with: no header can be as long.
const maxValue = 64 << 10

func decodeString(m *security.StringMatch) (model.StringMatch, error) {
	if len(m.GetExact())+len(m.GetPrefix())+len(m.GetSuffix()) > maxValue {
		return model.StringMatch{}, fmt.Errorf("a text of more than %d bytes", maxValue)
	}
	switch v := m.GetMatchType().(type) {
	case *security.StringMatch_Exact:
		return model.StringMatch{Kind: model.MatchExact, Value: v.Exact}, nil
	case *security.StringMatch_Prefix:
		return model.StringMatch{Kind: model.MatchPrefix, Value: v.Prefix}, nil
	case *security.StringMatch_Suffix:
		return model.StringMatch{Kind: model.MatchSuffix, Value: v.Suffix}, nil
	case *security.StringMatch_Presence:
		return model.StringMatch{Kind: model.MatchPresence}, nil
	}
	return model.StringMatch{}, errors.New("no kind of comparison")
}

func encodeAccount(a model.ServiceAccount) *security.ServiceAccountMatch {
	return &security.ServiceAccountMatch{Namespace: a.Namespace, ServiceAccount: a.Name}
}

func decodeAccount(a *security.ServiceAccountMatch) (model.ServiceAccount, error) {
	if a.GetNamespace() == "" || a.GetServiceAccount() == "" {
		return model.ServiceAccount{}, errors.New("namespace or service account is missing")
	}
	if !short(a.GetNamespace(), a.GetServiceAccount()) {
		return model.ServiceAccount{}, fmt.Errorf("a name of more than %d bytes", maxText)
	}
	return model.ServiceAccount{Namespace: a.GetNamespace(), Name: a.GetServiceAccount()}, nil
}

func encodeMatchPort(p uint16) uint32 { return uint32(p) }

func decodeMatchPort(p uint32) (uint16, error) { return portNumber(p) }

func encodeLabel(l model.LabelMatch) *tacit.LabelMatch {
	return &tacit.LabelMatch{Key: l.Key, Values: encodeEach(l.Values, encodeString)}
}

func decodeLabel(l *tacit.LabelMatch) (model.LabelMatch, error) {
	if l.GetKey() == "" || len(l.GetValues()) == 0 {
		return model.LabelMatch{}, errors.New("key or values are missing")
	}
	v, err := decodeEach("values", l.GetValues(), decodeString)
	return model.LabelMatch{Key: l.GetKey(), Values: v}, err
}

const secondsPerDay = 24 * 60 * 60

func encodeWindow(w model.TimeWindow) *tacit.TimeWindow {
	return &tacit.TimeWindow{First: encodeSeconds(w.First), Last: encodeSeconds(w.Last)}
}

// encodeSeconds sends what is no whole second of a day as a number that the
// receiver refuses.
func encodeSeconds(d time.Duration) uint32 {
	if d < 0 || d > secondsPerDay*time.Second || d%time.Second != 0 {
		return math.MaxUint32
	}
	return uint32(d / time.Second)
}

func decodeWindow(w *tacit.TimeWindow) (model.TimeWindow, error) {
	if w.GetFirst() > secondsPerDay || w.GetLast() > secondsPerDay {
		return model.TimeWindow{}, fmt.Errorf("window %d-%d is not within a day of %d s", w.GetFirst(), w.GetLast(), secondsPerDay)
	}
	return model.TimeWindow{
		First: time.Duration(w.GetFirst()) * time.Second,
		Last:  time.Duration(w.GetLast()) * time.Second,
	}, nil
}
