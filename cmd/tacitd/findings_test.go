package main

import (
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/source/files"
)

// What is doubtful in a policy is said wherever its status is: in the file and
// in the cluster.
func TestStatusHasFindings(t *testing.T) {
	objects, errs := files.Read("../../xds/lint/testdata/doubtful.yaml")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	mesh := build.New(build.Settings{})
	mesh.Apply(objects.Since(nil))
	s := newStatus(mesh, nil, func(*model.Policy) []string { return nil })
	found := false
	for i, p := range s.statuses {
		if p.Kind == "AuthorizationPolicy" && p.Name == "addresses" {
			found = len(p.Findings) > 0 && strings.Contains(p.Findings[0], "spec.rules[0].from[0].source.ipBlocks[0]: is compared with")
		}
		if strings.Join(p.Findings, "\n") != strings.Join(s.Policies[i].Findings, "\n") {
			t.Errorf("%s %s: the file says %q, the cluster %q", p.Kind, p.Name, s.Policies[i].Findings, p.Findings)
		}
	}
	if !found {
		t.Errorf("nothing doubtful is said of the policy addresses: %+v", s.statuses)
	}
}
