package ca

import (
	"testing"

	"github.com/tacit-mesh/tacit/internal/audit"
	"github.com/tacit-mesh/tacit/internal/audit/audittest"
)

func TestCertificatesAreAudited(t *testing.T) {
	log, records := audittest.New(t)
	s := newService(t)
	s.Audit = log
	must(newRequest().call(s))
	must(newRequest().call(s))
	refused := newRequest()
	refused.node = ""
	if _, err := refused.call(s); err == nil {
		t.Fatal("nobody got a certificate")
	}
	all := records()
	for i, want := range []string{"issued", "renewed", "refused"} {
		if len(all) != 3 || all[i].Event != audit.EventIdentity || all[i].Fields["what"] != want || all[i].Fields["identity"] == "" {
			t.Fatalf("records: %+v, want %s in the place of %d", all, want, i)
		}
	}
	if all[0].Fields["serial"] == all[1].Fields["serial"] || all[2].Fields["error"] == "" {
		t.Errorf("records: %+v", all)
	}
}
