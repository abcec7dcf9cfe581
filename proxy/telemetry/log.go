package telemetry

import (
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// maxErrorText bounds what a peer's words in an error can add to a line.
const maxErrorText = 500

// line is a record as it is logged, at the moment of its end.
type line struct {
	*Record
	end time.Time
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (l line) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	addString(enc, "id", connectionID(l.ID))
	enc.AddString("direction", l.Direction.String())
	enc.AddString("security", l.Security.String())
	enc.AddString("outcome", l.Outcome.String())
	addEnd(enc, &l.Source, "src.addr", "src.workload", "src.namespace", "src.identity")
	addEnd(enc, &l.Destination, "dst.addr", "dst.workload", "dst.namespace", "dst.identity")
	if l.Service != nil {
		enc.AddString("dst.service", l.Service.Hostname)
	}
	enc.AddInt64("bytes_sent", l.Sent)
	enc.AddInt64("bytes_recv", l.Received)
	enc.AddFloat64("duration_ms", float64(l.end.Sub(l.Start).Microseconds())/1000)
	if err := enc.AddObject("phases_us", phaseTimes{&l.Phases}); err != nil {
		return err
	}
	addString(enc, "policy", l.Policy)
	addString(enc, "reason", l.Reason)
	addString(enc, "attribute", l.Attribute)
	addString(enc, "dry_run", l.DryRun)
	addString(enc, "bypass", l.Bypass)
	if l.Err != nil {
		enc.AddString("error", errorText(l.Err))
	}
	return nil
}

func addEnd(enc zapcore.ObjectEncoder, e *End, addr, workload, namespace, identity string) {
	enc.AddString(addr, e.Addr.String())
	name, ns := e.Name, e.Namespace
	if w := e.Workload; w != nil {
		name, ns = w.Name, w.Namespace
	}
	addString(enc, workload, name)
	addString(enc, namespace, ns)
	addString(enc, identity, e.Identity.String())
}

func addString(enc zapcore.ObjectEncoder, key, value string) {
	if value != "" {
		enc.AddString(key, value)
	}
}

type phaseTimes struct{ phases *[Phases]time.Duration }

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (p phaseTimes) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	for phase, d := range p.phases {
		if d > 0 {
			enc.AddFloat64(Phase(phase).String(), float64(d.Nanoseconds())/1000)
		}
	}
	return nil
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (r repeated) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	if r.kind.source.IsValid() {
		enc.AddString("direction", r.kind.direction.String())
		enc.AddString("src.ip", r.kind.source.String())
	}
	if r.kind.destination.IsValid() {
		enc.AddString("dst.addr", r.kind.destination.String())
	}
	addString(enc, "policy", r.kind.policy)
	addString(enc, "reason", r.kind.reason)
	enc.AddInt("suppressed", r.count)
	return nil
}

// connectionID is a claim of the other node's proxy, which may be hostile.
func connectionID(id string) string {
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		return ""
	}
	return id
}

func errorText(err error) string {
	text := err.Error()
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "..."
	}
	return text
}

// admit begins a line, or returns nil if it is one too many of its kind.
func (r *Recorder) admit(level zapcore.Level, k kind) *zapcore.CheckedEntry {
	if !r.log.Core().Enabled(level) {
		return nil
	}
	if level > zapcore.InfoLevel && !r.flood.admit(k) {
		r.metrics.suppressed.Inc()
		return nil
	}
	return r.log.Check(level, k.message)
}

// summarize writes what was held back since the last time.
func (r *Recorder) summarize() {
	for _, held := range r.flood.flush() {
		r.log.Warn(held.kind.message+", repeated", zap.Inline(held))
	}
}
