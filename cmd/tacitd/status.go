package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/internal/manifests"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/lint"
	"github.com/tacit-mesh/tacit/xds/model"
)

// status is what --status-file holds.
type status struct {
	// Serving says that proxies are sent the mesh.
	Serving   bool            `json:"serving"`
	Policies  []policyStatus  `json:"policies"`
	Manifests []manifestError `json:"manifestErrors"`
	Problems  []problem       `json:"problems"`

	statuses []build.PolicyStatus // of the policies, with all that is known of them
}

type policyStatus struct {
	Kind       string   `json:"kind"`
	Namespace  string   `json:"namespace"`
	Name       string   `json:"name"`
	Generation int64    `json:"observedGeneration"`
	Enforced   bool     `json:"enforced"`
	Layer      string   `json:"layer,omitempty"`
	Ports      []string `json:"ports,omitempty"` // PORT/LAYER
	Messages   []string `json:"messages,omitempty"`
	// Findings are parts that do something else than was probably meant.
	Findings []string `json:"findings,omitempty"`
}

type manifestError struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
}

type problem struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Message   string `json:"message"`
}

// newStatus describes the mesh, nil for one that is not known yet. lacking
// names the nodes whose proxies do not understand all of a policy.
func newStatus(m *build.Mesh, errs []error, lacking func(*model.Policy) []string) *status {
	s := &status{Serving: m != nil, Policies: []policyStatus{}, Manifests: []manifestError{}, Problems: []problem{}}
	unread := map[string]string{} // policies of the cluster that cannot be read as they are
	for _, err := range errs {
		var e *manifests.Error
		var p build.Problem
		switch {
		case errors.As(err, &e):
			s.Manifests = append(s.Manifests, manifestError{e.File, e.Line, e.Field, e.Err.Error()})
		case errors.As(err, &p):
			unread[p.Kind+" "+p.Namespace+"/"+p.Name] = p.Err.Error()
		default:
			s.Manifests = append(s.Manifests, manifestError{Message: err.Error()})
		}
	}
	if m == nil {
		return s
	}
	nodes := map[string][]string{}
	for _, p := range m.Policies() {
		if names := lacking(p); len(names) > 0 {
			nodes[p.Key()] = names
		}
	}
	findings := map[string][]string{}
	for _, f := range lint.Check(m.Objects(), m.Settings()) {
		key := f.Kind + " " + f.Namespace + "/" + f.Name
		findings[key] = append(findings[key], f.Field+": "+f.Now+"; probably meant: "+f.Meant)
	}
	for _, p := range m.Statuses() {
		if names := nodes[p.Policy()]; len(names) > 0 {
			p.Messages = append(slices.Clip(p.Messages), partOf(names))
		}
		if message, ok := unread[p.Kind+" "+p.Namespace+"/"+p.Name]; ok {
			p.Messages = append([]string{message}, p.Messages...)
		}
		p.Findings = findings[p.Kind+" "+p.Namespace+"/"+p.Name]
		s.statuses = append(s.statuses, p)
		s.Policies = append(s.Policies, policyStatus{p.Kind, p.Namespace, p.Name, p.Generation, p.Enforced, p.Layer, p.Ports, p.Messages, p.Findings})
	}
	for _, p := range m.Problems() {
		s.Problems = append(s.Problems, problem{p.Kind, p.Namespace, p.Name, p.Err.Error()})
	}
	return s
}

// maxNodes bounds how many nodes one message names.
const maxNodes = 20

func partOf(nodes []string) string {
	more := ""
	if n := len(nodes) - maxNodes; n > 0 {
		nodes, more = nodes[:maxNodes], fmt.Sprintf(" and %d more", n)
	}
	return "not enforced as written on node " + strings.Join(nodes, ", ") + more +
		": the proxy there does not understand all of it, so DENY rules match more and ALLOW rules less"
}

// write replaces the file at once; readers see the old one or the new one.
func (s *status) write(path string) error {
	if path == "" {
		return nil
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// line is what the log says of one object.
type line struct {
	key, text string
	good      bool
}

func (s *status) lines() (out []line) {
	for _, e := range s.Manifests {
		text := (&manifests.Error{File: e.File, Line: e.Line, Field: e.Field, Err: errors.New(e.Message)}).Error()
		out = append(out, line{key: text, text: text})
	}
	for _, p := range s.Policies {
		key := p.Kind + " " + p.Namespace + "/" + p.Name
		text := key + ": enforced"
		switch {
		case !p.Enforced:
			text = key + ": not enforced"
		case len(p.Messages) > 0:
			text = key + ": enforced in part"
		}
		if len(p.Messages) > 0 {
			text += ": " + strings.Join(p.Messages, "; ")
		}
		out = append(out, line{key, text, p.Enforced && len(p.Messages) == 0})
	}
	for _, p := range s.Problems {
		text := p.Kind + " " + p.Namespace + "/" + p.Name + ": " + p.Message
		out = append(out, line{key: text, text: text})
	}
	return out
}
