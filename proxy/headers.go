package proxy

import (
	"crypto/rand"
	"encoding/hex"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/xds/model"
)

// The headers of a CONNECT are Istio ambient's. What the peer makes of them
// decides nothing: they decorate its telemetry.
const (
	baggageHeader     = "baggage"
	forwardedHeader   = "forwarded"
	traceparentHeader = "traceparent"
	networkHeader     = "x-forwarded-network" // the source's, for another one
)

func (c *Connection) headers() []hbone.Header {
	forwarded := `for="` + c.source.String() + `"`
	if c.record.Service != nil {
		forwarded += ";host=" + c.record.Service.Hostname
	}
	headers := []hbone.Header{
		{Name: forwardedHeader, Value: forwarded},
		{Name: traceparentHeader, Value: traceparent(c.record.ID)},
	}
	if w := c.record.Source.Workload; w != nil {
		headers = append(headers, hbone.Header{Name: baggageHeader, Value: baggage(w)})
	}
	return headers
}

// traceparent is W3C Trace Context: version, trace id, parent id, not sampled.
func traceparent(id string) string {
	var parent [8]byte
	_, _ = rand.Read(parent[:]) // never fails
	return "00-" + id + "-" + hex.EncodeToString(parent[:]) + "-00"
}

// traceID reads the trace id of a traceparent; a new one where there is none,
// so that every connection has an id.
func traceID(header string) string {
	parts := strings.Split(header, "-")
	if len(parts) != 4 || len(parts[1]) != 32 || strings.Trim(parts[1], "0123456789abcdef") != "" {
		return newID()
	}
	return strings.Clone(parts[1]) // not the peer's whole header, for as long as the id is remembered
}

var workloadTypes = map[model.WorkloadType]string{
	model.TypeDeployment: "deployment", model.TypeCronJob: "cronjob", model.TypePod: "pod", model.TypeJob: "job",
}

// baggage describes the source, keys without a value left out.
func baggage(w *model.Workload) string {
	var b strings.Builder
	for _, item := range [][2]string{
		{"k8s.cluster.name", w.ClusterID},
		{"k8s.namespace.name", w.Namespace},
		{"k8s." + workloadTypes[w.WorkloadType] + ".name", w.WorkloadName},
		{"service.name", w.CanonicalName},
		{"service.version", w.CanonicalRevision},
		{"cloud.region", w.Locality.Region},
		{"cloud.availability_zone", w.Locality.Zone},
	} {
		if item[1] == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(item[0] + "=" + item[1])
	}
	return b.String()
}
