package wire

import (
	"errors"
	"fmt"

	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/model"
)

func encodeRateLimit(r *model.RateLimit) (*tacit.RateLimit, error) {
	out := &tacit.RateLimit{}
	if s := r.Store; s != nil {
		out.Store = &tacit.LimitStore{Host: s.Host, Port: uint32(s.Port), Tls: encodeTLS(s.TLS, s.ServerName, s.Roots)}
	}
	for _, l := range r.Limits {
		encoded := &tacit.Limit{
			Unit: tacit.Limit_Unit(l.Unit), Amount: l.Amount, IntervalMs: encodeMilliseconds(l.Interval), Burst: l.Burst,
			Per: tacit.Limit_Per(l.Per), Key: l.Key, PerWorkload: l.PerWorkload,
		}
		for _, rule := range l.Rules {
			r, err := encodeRule(rule)
			if err != nil {
				return nil, err
			}
			encoded.Rules = append(encoded.Rules, r)
		}
		out.Limits = append(out.Limits, encoded)
	}
	return out, nil
}

func decodeRateLimit(r *tacit.RateLimit) (*model.RateLimit, error) {
	out := &model.RateLimit{}
	var err1, err2 error
	out.Limits, err1 = decodeEach("limits", r.GetLimits(), decodeLimit)
	if s := r.GetStore(); s != nil {
		out.Store = &model.LimitStore{
			Host: s.GetHost(), TLS: s.GetTls() != nil, ServerName: s.GetTls().GetServerName(), Roots: s.GetTls().GetRoots(),
		}
		if out.Store.Port, err2 = portNumber(s.GetPort()); err2 == nil && s.GetHost() == "" {
			err2 = errors.New("store: host is missing")
		}
	}
	return out, errors.Join(err1, err2)
}

func decodeLimit(l *tacit.Limit) (model.Limit, error) {
	out := model.Limit{
		Unit: model.LimitUnit(l.GetUnit()), Amount: l.GetAmount(), Burst: l.GetBurst(),
		Per: model.LimitKey(l.GetPer()), Key: l.GetKey(), PerWorkload: l.GetPerWorkload(),
	}
	named := l.GetPer() == tacit.Limit_CLAIM || l.GetPer() == tacit.Limit_HEADER
	switch {
	case !known(l.GetUnit()) || !known(l.GetPer()):
		return out, fmt.Errorf("unit %d or key %d is unknown", l.GetUnit(), l.GetPer())
	case named != (l.GetKey() != ""):
		return out, errors.New("the key's name is missing, or there is one where none is needed")
	case l.GetAmount() == 0 || l.GetBurst() == 0:
		return out, errors.New("amount or burst is 0")
	}
	for i, rule := range l.GetRules() {
		out.Rules = append(out.Rules, decodeRule(rule, fmt.Sprintf("rules[%d]", i)))
	}
	var err error
	out.Interval, err = decodeMilliseconds(l.GetIntervalMs())
	return out, err
}

// encodePaths and decodePaths translate the mode of a workload. One that this
// version does not know is the strictest that it does.
func encodePaths(mode model.PathNormalization) tacit.PathNormalization {
	return tacit.PathNormalization(mode)
}

func decodePaths(mode tacit.PathNormalization) model.PathNormalization {
	if !known(mode) {
		return model.NormalizeDecodeAndMergeSlashes
	}
	return model.PathNormalization(mode)
}
