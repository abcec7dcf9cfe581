package admin

import (
	"fmt"
	"net/http"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Certificate is one certificate of the node, or the lack of it.
type Certificate struct {
	Identity string `json:"identity"`
	// Issuer and Serial, in hexadecimal, say which one it is. They and the
	// times are empty as long as there is none.
	Issuer    string    `json:"issuer,omitempty"`
	Serial    string    `json:"serial,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	// Renewal is when a newer one is due.
	Renewal time.Time `json:"renewal,omitzero"`
	// Failures to get or renew it, and the last one, empty once it has
	// succeeded again.
	Failures uint64 `json:"failures"`
	Error    string `json:"error"`
	// Selectors tell the pod that it is for, where pods of one identity do
	// not share one.
	Selectors string `json:"selectors,omitempty"`
	// Chain is what peers are shown, leaf first, and Roots what peers are
	// judged by, DER; in the answer to /certificates alone.
	Chain [][]byte `json:"chain,omitempty"`
	Roots [][]byte `json:"roots,omitempty"`
}

// certificates answers with every certificate of the node.
func (s *Server) certificates(w http.ResponseWriter, _ *http.Request) {
	var all []Certificate
	if s.Certificates != nil {
		all = s.Certificates()
	}
	stream(w, func(e *encoder) {
		e.member("node", s.Node)
		writeList(e, "certificates", all, asIs)
	})
}

// certificate says whether the node has what a pod of its proves its identity
// with. If it lacks that, no mutual TLS is possible, which is the verdict.
func (e *explainer) certificate(w *model.Workload) (v verdict, lacks bool) {
	if e.certificates == nil {
		return verdict{}, false
	}
	if w.Node != e.node {
		e.step("certificate", note, "That of pod %s is node %s's to show: tacit certs there.", podName(w), w.Node)
		return verdict{}, false
	}
	found := Certificate{Error: "the proxy has not asked for one"}
	for _, c := range e.certificates() {
		if c.Identity == w.Identity().String() && (found.NotAfter.IsZero() || found.invalid(e.now) != "") { // pods may have their own
			found = c
		}
	}
	why := found.invalid(e.now)
	if why == "" {
		e.step("certificate", ok, "Pod %s proves its identity by certificate %s of %s, valid until %s.", podName(w), found.Serial, found.Issuer, utc(found.NotAfter))
		return verdict{}, false
	}
	if found.Error != "" {
		why += ": " + found.Error
	}
	e.step("certificate", stop, "Pod %s cannot prove its identity: %s.", podName(w), why)
	return verdict{
		endpoint: podName(w), outcome: Denied, summary: fmt.Sprintf("No mutual TLS: pod %s has no valid certificate.", podName(w)),
		change: fmt.Sprintf("Node %s needs a valid certificate for pod %s: tacit certs says what keeps it from getting one.", w.Node, podName(w)),
	}, true
}

// invalid is why a certificate cannot be used; empty if it can.
func (c *Certificate) invalid(now time.Time) string {
	switch {
	case c.NotAfter.IsZero():
		return "there is no certificate yet"
	case !now.Before(c.NotAfter):
		return "its certificate has ended, at " + utc(c.NotAfter)
	case now.Before(c.NotBefore):
		return "its certificate is not valid before " + utc(c.NotBefore) + ", or the clock is wrong"
	}
	return ""
}

func utc(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
