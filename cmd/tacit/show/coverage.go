package show

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/traffic"
	"github.com/tacit-mesh/tacit/sight/uses"
)

// Coverage writes the two figures, then what they are made of.
func (p Printer) Coverage(c *traffic.Coverage, pairs bool) error {
	parts := []struct {
		title string
		rows  [][]string
	}{
		{"", figures(c)},
		{"NOT MUTUAL TLS, AND WHY", reasonRows(c.Reasons)},
		{"NAMESPACES", namespaceRows(c.Namespaces)},
		{"PAIRS", pairRows(c.Pairs)},
		{"WORKLOADS WITHOUT A POLICY", partyRows(c.WithoutPolicy)},
		{"PODS THAT ARE NOT CAPTURED", notCapturedRows(c.NotCaptured)},
		{"POLICIES THAT HAVE DECIDED ABOUT NOTHING SINCE THEN", nameRows(c.UnusedPolicies)},
		{"POLICIES THAT HAVE DECIDED ABOUT NOTHING FOR A WEEK", weekRows(c.Week)},
	}
	for _, part := range parts {
		if len(part.rows) == 0 || part.title == "PAIRS" && !pairs {
			continue
		}
		if part.title != "" {
			if err := p.Heading(part.title, true); err != nil {
				return err
			}
		}
		if err := p.table(part.rows); err != nil {
			return err
		}
	}
	return nil
}

func weekRows(week *uses.Report) [][]string {
	if week == nil {
		return nil
	}
	return nameRows(week.Unused)
}

func figures(c *traffic.Coverage) [][]string {
	row := func(name string, s traffic.Shares) []string {
		return []string{name, share(s), fmt.Sprintf("%d mTLS, %d plain, %d skipped, %d to outside the mesh; %d denied", s.MTLS, s.Plain, s.Skipped, s.Passthrough, s.Denied)}
	}
	rows := [][]string{
		row("mTLS share", c.All),
		row("within the mesh", c.Mesh),
		{"policy coverage", percent(c.PolicyCoverage), fmt.Sprintf("%d of %d workloads with a policy", c.Workloads-len(c.WithoutPolicy), c.Workloads)},
		{"counted since", c.Since.UTC().Format(time.DateTime), "connections that have ended or live, each once"},
	}
	if c.Week != nil {
		rows = append(rows, []string{"policies since", moment(c.Week.Since), fmt.Sprintf("%d of them decided about nothing for a week", len(c.Week.Unused))})
	}
	return rows
}

// share is none where nothing was carried.
func share(s traffic.Shares) string {
	if s.MTLS+s.Plain+s.Skipped+s.Passthrough == 0 {
		return "nothing yet"
	}
	return percent(s.Share)
}

// percent never rounds to 100 what is less.
func percent(share float64) string {
	text := strconv.FormatFloat(share*100, 'f', 1, 64)
	if text == "100.0" && share < 1 {
		text = "99.9"
	}
	return text + " %"
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }

func reasonRows(reasons []traffic.Reason) (rows [][]string) {
	for _, r := range reasons {
		rows = append(rows, []string{count(r.Connections), r.Security, strings.ReplaceAll(r.Why, "_", " ")})
	}
	return headed(rows, "CONNECTIONS", "SECURITY", "WHY")
}

func namespaceRows(all []traffic.Namespace) (rows [][]string) {
	for _, n := range all {
		rows = append(rows, []string{
			n.Namespace, share(n.Shares), count(n.MTLS), count(n.Plain), count(n.Skipped), count(n.Passthrough), count(n.Denied),
			fmt.Sprintf("%d of %d", n.Workloads-n.WithoutPolicy, n.Workloads),
		})
	}
	return headed(rows, "NAMESPACE", "MTLS SHARE", "MTLS", "PLAIN", "SKIPPED", "OUTSIDE", "DENIED", "WITH A POLICY")
}

func pairRows(all []traffic.Pair) (rows [][]string) {
	for i := range all {
		p := &all[i]
		rows = append(rows, []string{
			Party(p.Source), Party(p.Destination), p.Security, strings.ReplaceAll(p.Why, "_", " "),
			count(p.Carried()), count(p.Requests), count(p.Denied), count(p.Failed), size(p.Sent), size(p.Received),
		})
	}
	return headed(rows, "SOURCE", "DESTINATION", "SECURITY", "WHY", "CONNECTIONS", "REQUESTS", "DENIED", "FAILED", "SENT", "RECEIVED")
}

// Party is one side of a pair.
func Party(p flows.Party) string {
	switch {
	case p == flows.Party{}:
		return "outside the mesh"
	case p == flows.Other:
		return "others"
	}
	return p.Namespace + "/" + p.Name
}

func partyRows(all []flows.Party) (rows [][]string) {
	for _, p := range all {
		rows = append(rows, []string{Party(p)})
	}
	return rows
}

func notCapturedRows(all []traffic.NotCaptured) (rows [][]string) {
	for _, w := range all {
		rows = append(rows, []string{Party(w.Party), strconv.Itoa(w.Pods), strings.ReplaceAll(w.Why, "_", " ")})
	}
	return headed(rows, "WORKLOAD", "PODS", "WHY")
}

func nameRows(all []string) (rows [][]string) {
	for _, name := range all {
		rows = append(rows, []string{name})
	}
	return rows
}

func headed(rows [][]string, heading ...string) [][]string {
	if len(rows) == 0 {
		return nil
	}
	return append([][]string{heading}, rows...)
}
