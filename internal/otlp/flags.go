package otlp

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/pflag"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/internal/audit"
)

// Flags say which collector a program tells, and of what.
type Flags struct {
	endpoint, roots, headers string
	audit                    bool
}

// Flags adds --otlp, --otlp-root, --otlp-headers and --audit-otlp.
func (f *Flags) Flags(set *pflag.FlagSet) {
	set.StringVar(&f.endpoint, "otlp", "", "`URL` of an OpenTelemetry collector that receives OTLP over gRPC, http://HOST:PORT or https://HOST:PORT; none if empty")
	set.StringVar(&f.roots, "otlp-root", "", "`file` of the PEM roots by which the collector of an https --otlp is known; empty: the system's")
	set.StringVar(&f.headers, "otlp-headers", "", "`file` of headers that the collector of an https --otlp wants, such as authorization: Bearer ..., one a line; read again for each message; none if empty")
	set.BoolVar(&f.audit, "audit-otlp", false, "send the records of the audit log to --otlp, whether or not --audit keeps them in a file as well")
}

// Check is an error if there is something wrong with the flags.
func (f *Flags) Check() error {
	if f.endpoint == "" {
		if f.audit || f.roots != "" || f.headers != "" {
			return errors.New("--audit-otlp, --otlp-root and --otlp-headers have no effect without --otlp, the collector to send to")
		}
		return nil
	}
	_, secure, err := parse(f.endpoint)
	if err != nil {
		return fmt.Errorf("--otlp: %w", err)
	}
	if f.headers != "" && !secure {
		return errors.New("--otlp-headers would be sent in clear: want https:// for --otlp")
	}
	return nil
}

// Wanted reports whether a collector is told of anything.
func (f *Flags) Wanted() bool { return f.endpoint != "" }

// Open is nil if no collector is told.
func (f *Flags) Open(program, node string, log *zap.Logger) (*Exporter, error) {
	if f.endpoint == "" {
		return nil, nil
	}
	var of Attributes
	of.String("service.name", program)
	host, _ := os.Hostname() // the pod's name, or nothing
	of.String("service.instance.id", cmp.Or(host, node))
	of.String("k8s.node.name", node)
	return New(Config{Endpoint: f.endpoint, Roots: f.roots, Headers: f.headers, Resource: of, Log: log})
}

// Audit is what takes the records of an audit log; nil if they are not wanted.
func (f *Flags) Audit(e *Exporter) func(audit.Record, []byte) {
	if !f.audit {
		return nil
	}
	return func(r audit.Record, line []byte) { e.LogRecord(auditRecord(r, line)) }
}

// auditRecord has the line as it is chained for its body, so that the chain can
// be verified from what a collector has kept.
func auditRecord(r audit.Record, line []byte) *logs.LogRecord {
	out := &logs.LogRecord{
		TimeUnixNano: UnixNano(r.Time), ObservedTimeUnixNano: UnixNano(r.Time), EventName: "tacit.audit." + r.Event,
		SeverityNumber: logs.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO",
		Body: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: string(line)}},
	}
	switch r.Event {
	case audit.EventDenied, audit.EventHandshake, audit.EventRepeated, audit.EventLost:
		out.SeverityNumber, out.SeverityText = logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	}
	var a Attributes
	a.String("tacit.audit.sequence", strconv.FormatUint(r.Sequence, 10))
	a.String("tacit.audit.hash", r.Hash)
	for _, key := range []string{"policy", "reason", "src.workload", "dst.workload", "src.identity", "bypass"} {
		a.String("tacit."+key, r.Fields[key])
	}
	out.Attributes = a
	if id, err := hex.DecodeString(r.Fields["id"]); err == nil && len(id) == 16 {
		out.TraceId = id // a connection's id is that of its trace
	}
	return out
}
