package kube

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/cmd/tacit/bench"
	"github.com/tacit-mesh/tacit/perf/report"
	"github.com/tacit-mesh/tacit/perf/suite"
)

// tacit bench measures all paths of a cluster and leaves nothing, also when it
// is interrupted.
func benchmark(e environment) {
	file := filepath.Join(e.t.TempDir(), "bench.json")
	_, err := e.Tacit(e.ctx, "bench", "--kubernetes", "--rounds=1", "--time=50ms", "--json="+file,
		"--run=^round trips of 1 KB, 1 connection$|^HTTP/1.1 requests, 16|^bulk to the server, 1 conn|beside bulk through")
	e.must(err)
	r, err := report.Read(file)
	e.must(err)
	for _, path := range []string{suite.Direct, suite.DirectNear, suite.Skipped, suite.Tacit, suite.TacitNear, suite.TacitHTTP} {
		load := "round trips of 1 KB, 1 connection"
		if path == suite.TacitHTTP {
			load = "HTTP/1.1 requests, 16 connections"
		}
		measured := false
		for _, x := range r.Rows {
			v, ok := x.Median(path)
			measured = measured || ok && x.Load == load && x.Name == "p50" && v > 0
		}
		if !measured {
			e.t.Errorf("%s: no %s: %+v", path, load, r.Rows)
		}
	}
	e.wantNoBench()

	cmd := exec.CommandContext(e.ctx, filepath.Join(e.programs, "tacit"), "bench", "--kubernetes", "--kubeconfig="+e.Kubeconfig)
	said, err := cmd.StderrPipe()
	e.must(err)
	e.must(cmd.Start())
	var all strings.Builder
	for lines := bufio.NewScanner(said); lines.Scan(); {
		all.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "Clients on node") {
			e.must(cmd.Process.Signal(unix.SIGINT))
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(all.String(), "Removing namespace") {
		e.t.Errorf("interrupted: %v\n%s", err, &all)
	}
	e.wantNoBench()
}

func (e environment) wantNoBench() {
	e.t.Helper()
	left, err := e.Client.CoreV1().Namespaces().List(e.ctx, metav1.ListOptions{LabelSelector: bench.Label})
	e.must(err)
	if len(left.Items) > 0 {
		e.t.Errorf("namespaces are left: %v", left.Items)
	}
}
