package main

import (
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/identity/spire"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/xds/model"
)

// checkIdentity returns what is wrong with the flags about certificates.
func (o *options) checkIdentity() (problems []error) {
	switch {
	case o.ca == "" && o.spire == "":
		problems = append(problems, fmt.Errorf("nobody gives certificates: name the certificate authority with --ca, or SPIRE's agent with --spire"))
	case o.ca != "" && o.spire != "":
		problems = append(problems, fmt.Errorf("--ca and --spire: certificates come from one of them"))
	}
	if o.spire != "" && !filepath.IsAbs(o.spire) {
		problems = append(problems, fmt.Errorf("--spire=%s: want the absolute path of the socket, such as /run/spire/admin/agent.sock", o.spire))
	}
	return problems
}

// newIdentities makes the store of certificates, and what they come from.
func newIdentities(o options) (*identity.Store, io.Closer, error) {
	if o.spire != "" {
		source, err := spire.New(spire.Config{Socket: o.spire})
		if err != nil {
			return nil, nil, fmt.Errorf("SPIRE agent %s: %w", o.spire, err)
		}
		return identity.NewStore(source, identity.WithSelectors(spire.Selectors)), source, nil
	}
	ca, err := caclient.New(caclient.Config{
		Address: o.ca, ServerName: o.serverName, RootsFile: o.root, TokenFile: o.token, Lifetime: o.lifetime,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("certificate authority %s: %w", o.ca, err)
	}
	return identity.NewStore(ca), ca, nil
}

func (p *process) certificates() iter.Seq2[model.Identity, time.Time] {
	return func(yield func(model.Identity, time.Time) bool) {
		for _, s := range p.store.All() {
			if !yield(s.Identity, s.NotAfter()) {
				return
			}
		}
	}
}

// certificateViews is what the store holds, for people.
func (p *process) certificateViews() []admin.Certificate {
	views := []admin.Certificate{}
	for _, s := range p.store.All() {
		v := admin.Certificate{Identity: s.Identity.String(), Selectors: strings.ReplaceAll(s.Selectors, "\n", " "), Failures: s.Failures}
		if s.Leaf != nil {
			v.Issuer, v.Serial = s.Leaf.Issuer.String(), s.Leaf.SerialNumber.Text(16)
			v.NotBefore, v.NotAfter, v.Renewal = s.Leaf.NotBefore, s.Leaf.NotAfter, s.Renewal()
		}
		if s.Err != nil {
			v.Error = s.Err.Error()
		}
		views = append(views, v)
	}
	return views
}
