package pods

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// DNSSettings say whose DNS queries are captured.
type DNSSettings struct {
	// All captures those of every pod that does not say otherwise.
	All bool
	// Servers are the cluster's. Queries to others are never captured: whoever
	// asks another server wants that one's answer.
	Servers []netip.Addr
}

// dnsAnnotations overrule the settings for one pod; ours comes first.
var dnsAnnotations = []string{"tacit.mesh/dns-capture", "ambient.istio.io/dns-capture"}

// read is queries to which servers are captured of a pod, and what is wrong
// with what the pod says.
func (d DNSSettings) read(p *corev1.Pod) (servers []netip.Addr, fault string) {
	wanted := d.All
	for _, name := range dnsAnnotations {
		value, ok := p.Annotations[name]
		if !ok {
			continue
		}
		if value != "true" && value != "false" {
			return nil, fmt.Sprintf("pod annotation %s: %q is neither true nor false, so no DNS queries are captured", name, value)
		}
		wanted = value == "true"
		if wanted && len(d.Servers) == 0 {
			return nil, fmt.Sprintf("pod annotation %s: tacit-agent has not been told the addresses of the cluster's DNS servers (--dns-server), so no queries are captured", name)
		}
		break
	}
	if !wanted {
		return nil, ""
	}
	return slices.Clone(d.Servers), ""
}

// endDNS lets the queries of a pod go that are to be captured no more, while the
// sockets for them are still there. What an agent of before captured is not
// known, so that all that is in place is brought to what is wanted.
func (w *worker) endDNS(ctx context.Context, p Pod) error {
	if p.DNS {
		return nil
	}
	captured := w.applied.pod.DNS
	if w.applied.pod.UID == "" {
		var err error
		if captured, err = w.place.isCaptured(); err != nil {
			return err
		}
	}
	if !captured {
		return nil
	}
	if _, err := w.place.capture(ctx, p); err != nil {
		return err
	}
	return w.place.forgetQueries()
}
