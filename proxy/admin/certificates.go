package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
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

// NodeCertificates are those of a node, or some of them.
type NodeCertificates struct {
	Node         string        `json:"node"`
	Certificates []Certificate `json:"certificates"`
}

// QueryCertificates are those of another node, for /explain, as JSON: proxies do not
// ask each other, so whoever asks for the whole brings them.
const QueryCertificates = "certificates"

// With adds to a question to /explain what another node answers to /certificates
// about identities.
func With(query url.Values, of NodeCertificates, identities []string) error {
	said := NodeCertificates{Node: of.Node}
	for _, c := range of.Certificates {
		if slices.Contains(identities, c.Identity) {
			c.Chain, c.Roots = nil, nil
			said.Certificates = append(said.Certificates, c)
		}
	}
	text, err := json.Marshal(said)
	query.Add(QueryCertificates, string(text))
	return err
}

// elsewhere are the certificates of other nodes that a question brings.
func elsewhere(brought []string) (map[string][]Certificate, error) {
	all := map[string][]Certificate{}
	for _, text := range brought {
		var of NodeCertificates
		if err := json.Unmarshal([]byte(text), &of); err != nil {
			return nil, fmt.Errorf("certificates of another node: %w", err)
		}
		all[of.Node] = append(all[of.Node], of.Certificates...)
	}
	return all, nil
}

// certificate says whether the node has what a pod of its proves its identity
// with. If it lacks that, no mutual TLS is possible, which is the verdict.
func (e *explainer) certificate(w *model.Workload) (v verdict, lacks bool) {
	if e.certificates == nil {
		return verdict{}, false
	}
	if w.Node == "" {
		e.step("certificate", note, "Pod %s is on no node of this mesh: its certificate is not to be seen from here.", podName(w))
		return verdict{}, false
	}
	all, known := e.elsewhere[w.Node]
	if w.Node == e.node {
		all, known = e.certificates(), true
	}
	if !known {
		e.step("certificate", note, "That of pod %s is node %s's to show: tacit certs there.", podName(w), w.Node)
		e.Steps[len(e.Steps)-1].Ask = &Ask{w.Node, w.Identity().String()}
		return verdict{}, false
	}
	valid, invalid := e.certificatesOf(w.Identity(), all)
	why := ""
	if len(invalid) > 0 {
		why = invalid[0].invalid(e.now)
		if invalid[0].Error != "" {
			why += ": " + invalid[0].Error
		}
	}
	switch {
	case len(invalid) == 0:
		e.step("certificate", ok, "Pod %s proves its identity by certificate %s of %s, valid until %s.", podName(w), valid[0].Serial, valid[0].Issuer, utc(valid[0].NotAfter))
		return verdict{}, false
	case len(valid) > 0:
		e.step("certificate", note, "Not all %d certificates of %s are valid; tacit certs shows which is that of pod %s. One pod: %s.", len(valid)+len(invalid), w.Identity(), podName(w), why)
		return verdict{}, false
	}
	e.step("certificate", stop, "Pod %s cannot prove its identity: %s.", podName(w), why)
	return verdict{
		endpoint: podName(w), outcome: Denied, summary: fmt.Sprintf("No mutual TLS: pod %s has no valid certificate.", podName(w)),
		change: fmt.Sprintf("Node %s needs a valid certificate for pod %s: tacit certs says what keeps it from getting one.", w.Node, podName(w)),
	}, true
}

// certificatesOf are those of a node's pods that have an identity: each may have
// its own. There is at least one, if only the lack of it.
func (e *explainer) certificatesOf(id model.Identity, all []Certificate) (valid, invalid []Certificate) {
	for _, c := range all {
		switch {
		case c.Identity != id.String():
		case c.invalid(e.now) == "":
			valid = append(valid, c)
		default:
			invalid = append(invalid, c)
		}
	}
	if len(valid)+len(invalid) == 0 {
		invalid = []Certificate{{Error: "the proxy has not asked for one"}}
	}
	return valid, invalid
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
