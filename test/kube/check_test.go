package kube

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"

	"github.com/tacit-mesh/tacit/deploy/check"
)

// checkNodes looks at nodes from inside before there are agents on them, which
// finds nothing in the way and leaves nothing.
func (e environment) checkNodes(before map[string]string) {
	e.t.Helper()
	findings := e.findings("--nodes", "--timeout=2m", "--set=image.registry="+e.Registry(), "--set=image.tag="+tag)
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	for _, node := range nodes {
		if f := find(findings, "CNI", node); f.Level != check.Fine || !strings.Contains(f.Text, "tacit-cni will come after") {
			e.t.Errorf("tacit check --nodes says of the CNI configuration of %s: %+v", node, f)
		}
	}
	for _, f := range findings {
		if f.Level == check.Broken || f.Level == check.Unknown {
			e.t.Errorf("tacit check --nodes finds %+v", f)
		}
	}
	e.wantNodesAs(before)
}

// finding is what tacit check says about something; none is of no level.
func (e environment) finding(topic, subject string) check.Finding {
	e.t.Helper()
	return find(e.findings(), topic, subject)
}

func find(findings []check.Finding, topic, subject string) check.Finding {
	for _, f := range findings {
		if f.Topic == topic && f.Subject == subject {
			return f
		}
	}
	return check.Finding{}
}

// findings are all that tacit check says. Its exit code has to say the same.
func (e environment) findings(flags ...string) []check.Finding {
	e.t.Helper()
	out, err := e.Tacit(e.ctx, append([]string{"check", "--output=json", "--all"}, flags...)...)
	var report check.Report
	_, text, _ := strings.Cut(out, "{") // what is before it is progress
	if decoded := json.Unmarshal([]byte("{"+text), &report); decoded != nil {
		e.t.Fatal("tacit check: ", err, decoded, out)
	}
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	if broken := report.Worst() == check.Broken; broken != (code == 3) || !broken && code != 0 {
		e.t.Errorf("tacit check ends with exit code %d, and the worst that it finds is %s", code, report.Worst())
	}
	return report.Findings
}
