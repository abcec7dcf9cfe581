// Package check finds out what is in the way of Tacit on a cluster, before it
// is installed and after, and says what to do about each thing.
//
// What does not belong here: mending anything, and looking at a node from the
// inside (deploy/facts).
package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/deploy/cluster"
)

// Level is how much a finding matters.
type Level string

// The levels, the worst first.
const (
	Broken  Level = "broken"  // something does not work, or will not
	Risky   Level = "risky"   // something may not work, or soon
	Unknown Level = "unknown" // it could not be looked at
	Fine    Level = "fine"    // it was looked at and nothing is in the way
)

// rank orders the levels.
func (l Level) rank() int { return slices.Index([]Level{Broken, Risky, Unknown, Fine}, l) }

// Finding is one thing that was looked at.
type Finding struct {
	Level   Level  `json:"level"`
	Topic   string `json:"topic"`   // such as "NetworkPolicy"
	Subject string `json:"subject"` // such as "shop/web" or "node-1"
	Text    string `json:"text"`
	Do      string `json:"do,omitempty"` // unless it is fine
}

// Report is all that was found, the worst first.
type Report struct {
	// Installed is whether Tacit is on the cluster: only then nodes can be
	// looked at from the inside without pods that are made for that.
	Installed bool      `json:"installed"`
	Findings  []Finding `json:"findings"`
}

// Worst is the level of the report's first finding.
func (r Report) Worst() Level {
	if len(r.Findings) == 0 {
		return Fine
	}
	return r.Findings[0].Level
}

// state is what the checks look at: read once.
type state struct {
	c          *cluster.Cluster
	now        func() time.Time
	nodes      []core.Node
	namespaces map[string]*core.Namespace
	pods       []core.Pod
	agents     []core.Pod // that run
	scouts     []core.Pod // that run in their place before there are any
	proxies    []core.Pod
	findings   []Finding
}

// Run looks at everything. The error is that the cluster says nothing at all.
func Run(ctx context.Context, c *cluster.Cluster) (Report, error) {
	s := &state{c: c, now: time.Now, namespaces: map[string]*core.Namespace{}}
	if err := s.read(ctx); err != nil {
		return Report{}, err
	}
	checks := []func(context.Context){
		s.version, s.permissions, s.nodesReady, s.platform, s.cilium, s.calico, s.otherMeshes, s.kinds, s.networkPolicies,
	}
	installed := len(s.agents) > 0 || len(s.proxies) > 0
	if installed {
		checks = append(checks, s.workloads, s.captured, s.certificates, s.facts)
	} else if len(s.scouts) > 0 {
		checks = append(checks, s.facts)
	} else {
		s.add(Unknown, "Nodes", "all", "Kernels, iptables, CNI configuration, SELinux, limits and clocks are seen only from the agent's pods",
			"run tacit check --nodes, with the values that you will install with: it makes pods like these, and takes them away again")
	}
	for _, look := range checks {
		if ctx.Err() != nil {
			return Report{}, ctx.Err()
		}
		look(ctx)
	}
	slices.SortStableFunc(s.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Level.rank(), b.Level.rank()), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Subject, b.Subject))
	})
	return Report{Installed: installed, Findings: s.findings}, nil
}

func (s *state) add(level Level, topic, subject, text, do string) {
	s.findings = append(s.findings, Finding{Level: level, Topic: topic, Subject: subject, Text: text, Do: do})
}

// unknown notes that something could not be looked at.
func (s *state) unknown(topic, subject string, err error) {
	s.add(Unknown, topic, subject, err.Error(), "run tacit check as somebody who may look at it")
}

// fine notes that a check has found nothing since there were n findings.
func (s *state) fine(n int, topic, text string) {
	if len(s.findings) == n {
		s.add(Fine, topic, "all", text, "")
	}
}

// pageSize is how many objects are read at a time.
const pageSize = 500

func (s *state) read(ctx context.Context) error {
	v1 := s.c.Client.CoreV1()
	nodes, err := v1.Nodes().List(ctx, meta.ListOptions{})
	if err != nil {
		return fmt.Errorf("read the cluster's nodes: %w", err)
	}
	s.nodes = nodes.Items
	namespaces, err := v1.Namespaces().List(ctx, meta.ListOptions{})
	if err != nil {
		return fmt.Errorf("read the cluster's namespaces: %w", err)
	}
	for i := range namespaces.Items {
		s.namespaces[namespaces.Items[i].Name] = &namespaces.Items[i]
	}
	for options := (meta.ListOptions{Limit: pageSize}); ; {
		page, err := v1.Pods("").List(ctx, options)
		if err != nil {
			return fmt.Errorf("read the cluster's pods: %w", err)
		}
		s.pods = append(s.pods, page.Items...)
		if options.Continue = page.Continue; page.Continue == "" {
			break
		}
	}
	s.agents, err = s.c.Pods(ctx, cluster.Agent)
	scouts, scoutProblem := s.c.Pods(ctx, cluster.Scout)
	s.scouts = scouts
	proxies, problem := s.c.Pods(ctx, cluster.Proxy)
	s.proxies = slices.CompactFunc(proxies, func(a, b core.Pod) bool { return a.Spec.NodeName == b.Spec.NodeName })
	return errors.Join(err, scoutProblem, problem)
}
