package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	core "k8s.io/api/core/v1"

	"github.com/tacit-mesh/tacit/perf/report"
	"github.com/tacit-mesh/tacit/perf/suite"
)

// metricsPort is the proxies'.
const metricsPort = "15020"

// usage is what the proxies' own metrics say, which a pod outside of the mesh
// asks for: the API server need not reach them.
func (b *bench) usage(ctx context.Context, proxies []core.Pod) (total suite.Usage, err error) {
	for _, p := range proxies {
		url := "http://" + net.JoinHostPort(p.Status.PodIP, metricsPort) + "/metrics"
		text, err := b.within.Run(ctx, plainClient, container, []string{"/usr/local/bin/tacit", "bench", "fetch", url})
		if err != nil {
			return total, fmt.Errorf("metrics of the proxy on node %s: %w", p.Spec.NodeName, err)
		}
		cpu, memory, err := processMetrics(text)
		if err != nil {
			return total, fmt.Errorf("metrics of the proxy on node %s: %w", p.Spec.NodeName, err)
		}
		total.CPU += cpu
		total.Memory += memory
	}
	return total, nil
}

// processMetrics finds two of those that every program of Prometheus' library
// has.
func processMetrics(text []byte) (cpu time.Duration, memory int64, err error) {
	found := map[string]float64{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if name == "process_cpu_seconds_total" || name == "process_resident_memory_bytes" {
			if found[name], err = strconv.ParseFloat(value, 64); err != nil {
				return 0, 0, err
			}
		}
	}
	if len(found) != 2 {
		return 0, 0, errors.New("they do not say what CPU and memory it uses")
	}
	return time.Duration(found["process_cpu_seconds_total"] * float64(time.Second)), int64(found["process_resident_memory_bytes"]), nil
}

// Fetch writes what a URL has, for the pods.
func Fetch(ctx context.Context, url string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	_, err = io.Copy(out, response.Body)
	return err
}

// overhead says in words what matters most.
func overhead(r *report.Report) (lines []string) {
	for _, x := range r.Rows {
		for _, pair := range []struct{ where, with, without string }{
			{"between nodes", suite.Tacit, suite.Direct}, {"on one node", suite.TacitNear, suite.DirectNear}, {"with requests decided upon", suite.TacitHTTP, suite.Direct},
		} {
			with, ok1 := x.Median(pair.with)
			without, ok2 := x.Median(pair.without)
			if ok1 && ok2 && (x.Name == "p50" || x.Name == "p99") {
				lines = append(lines, fmt.Sprintf("The mesh adds to %s, %s, %s: %+.0f %s.", x.Load, pair.where, x.Name, with-without, x.Unit))
			}
		}
	}
	return lines
}
