package monitor

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

const listen = "127.0.0.1:9090"

// prometheus is a real one, on node a.
type prometheus struct {
	t *testing.T
	m *e2e.Mesh
}

// startPrometheus has it scrape every second; targets are addresses by job. The
// clock of the rules goes sixty times as fast as it is written in them: their
// minutes are seconds.
func startPrometheus(t *testing.T, m *e2e.Mesh, targets map[string][]string) *prometheus {
	t.Helper()
	dir := filepath.Join(m.Dir(), "prometheus")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile(filepath.Join(chart, "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	rules = regexp.MustCompile(`\b(\d+)m\b`).ReplaceAll(rules, []byte("${1}s"))
	rules = regexp.MustCompile(`\b(\d+)h\b`).ReplaceAll(rules, []byte("${1}m"))
	config := "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files: [rules.yaml]\nscrape_configs:\n"
	for job, addresses := range targets {
		config += fmt.Sprintf("- {job_name: %s, static_configs: [{targets: ['%s']}]}\n", job, strings.Join(addresses, "', '"))
	}
	for name, text := range map[string][]byte{"rules.yaml": rules, "prometheus.yml": []byte(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := m.Node("a").Command(t.Context(), "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+listen)
	program, err := world.Launch("prometheus", filepath.Join(dir, "log"), cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = program.Kill()
		if log, err := os.ReadFile(program.Log); t.Failed() && err == nil {
			t.Logf("prometheus ends with:\n%s", log[max(0, len(log)-4000):])
		}
	})
	return &prometheus{t, m}
}

// sample is one of an answer.
type sample struct {
	labels map[string]string
	value  float64
}

// query asks for what an expression is now; samples that are not a number are
// left out.
func (p *prometheus) query(expr string) ([]sample, error) {
	response, err := p.m.Node("a").HTTP().Get("http://" + listen + "/api/v1/query?" + url.Values{"query": {expr}}.Encode()) //nolint:noctx // a test's own server
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Error string
		Data  struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil || response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s %s: %w", expr, response.Status, answer.Error, err)
	}
	var samples []sample
	for _, r := range answer.Data.Result {
		text, _ := r.Value[1].(string)
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %v: %w", expr, r.Value, err)
		}
		if !math.IsNaN(value) {
			samples = append(samples, sample{r.Metric, value})
		}
	}
	return samples, nil
}

// panels are the queries of all dashboards, those of variables included, with
// everything chosen that can be; by where they are.
func panels(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(chart, "dashboards", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	choose := strings.NewReplacer("$__rate_interval", "10s", "$__range", "1m", "$namespace", ".*", "$workload", ".*", "$node", ".*", "$proxy", ".*")
	ofVariable := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)
	all := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var board struct {
			Templating struct {
				List []struct {
					Type  string
					Query any
				}
			}
			Panels []struct {
				Title   string
				Targets []struct{ RefID, Expr string }
			}
		}
		if err := json.Unmarshal(text, &board); err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(file)
		for _, v := range board.Templating.List {
			if query, ok := v.Query.(map[string]any); ok {
				all[fmt.Sprint(name, ": variable ", query["refId"])] = choose.Replace(ofVariable.ReplaceAllString(fmt.Sprint(query["query"]), "count by ($2) ($1)"))
			}
		}
		for _, p := range board.Panels {
			for _, target := range p.Targets {
				all[fmt.Sprintf("%s: %s %s", name, p.Title, target.RefID)] = choose.Replace(target.Expr)
			}
		}
	}
	return all
}
