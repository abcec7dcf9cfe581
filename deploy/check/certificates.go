package check

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/proxy/admin"
)

// caSoon is how long before its end a CA's certificate is a matter of concern.
const caSoon = 90 * 24 * time.Hour

// certificates looks at the CA's and at those that the proxies hold.
func (s *state) certificates(ctx context.Context) {
	before := len(s.findings)
	roots, err := s.c.Client.CoreV1().ConfigMaps(s.c.Namespace).Get(ctx, "tacit-ca-root", meta.GetOptions{})
	if err != nil {
		s.unknown("Certificates", "CA", err)
	} else if err := s.roots([]byte(roots.Data["root-cert.pem"])); err != nil {
		s.add(Broken, "Certificates", "CA", "ConfigMap tacit-ca-root: "+err.Error(), "see the log of tacitd, which keeps it current")
	}
	nodes := map[string][]admin.Certificate{}
	for _, pod := range s.proxies {
		text, err := s.c.Run(ctx, pod.Name, cluster.Proxy, []string{"tacit", "certs", "-o", "json"})
		var answer struct{ Certificates []admin.Certificate }
		if err == nil {
			err = json.Unmarshal(text, &answer)
		}
		if err != nil {
			s.unknown("Certificates", pod.Spec.NodeName, err)
			continue
		}
		s.held(pod.Spec.NodeName, answer.Certificates)
		nodes[pod.Spec.NodeName] = answer.Certificates
	}
	s.chains(nodes)
	s.fine(before, "Certificates", "the CA's and all that the proxies hold are valid, accepted by all nodes, and renewed in time")
}

func (s *state) roots(text []byte) error {
	found := false
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		found = true
		left := certificate.NotAfter.Sub(s.now())
		switch do := "replace it before that: tacit ca rotate; or, if the CA is not tacitd's own, put the new root beside the old one where it comes from"; {
		case left < 0:
			s.add(Broken, "Certificates", "CA", "ended on "+certificate.NotAfter.Format(time.DateOnly), do)
		case left < caSoon:
			s.add(Risky, "Certificates", "CA", "ends on "+certificate.NotAfter.Format(time.DateOnly), do)
		}
	}
	if !found {
		return errors.New("there is no certificate in it")
	}
	return nil
}

// held looks at the certificates of one node. They are renewed at half of
// their life, so one with less than a third left was not renewed.
func (s *state) held(node string, all []admin.Certificate) {
	for _, c := range all {
		why := c.Error
		if why != "" {
			why = ": " + why
		}
		life, left := c.NotAfter.Sub(c.NotBefore), c.NotAfter.Sub(s.now())
		switch do := "see the log of tacitd, and whether " + node + " reaches it at port 15012"; {
		case c.NotAfter.IsZero():
			s.add(Broken, "Certificates", node, "there is none for "+c.Identity+why, do)
		case left < 0:
			s.add(Broken, "Certificates", node, fmt.Sprintf("that of %s ended %v ago%s", c.Identity, (-left).Round(time.Second), why), do)
		case left < life/3:
			s.add(Risky, "Certificates", node, fmt.Sprintf("that of %s ends in %v and was not renewed%s", c.Identity, left.Round(time.Second), why), do)
		}
	}
}
