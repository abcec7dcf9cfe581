package admin

import (
	"net/http"
	"time"
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
