package deploy

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const alertsDoc = "https://github.com/tacit-mesh/tacit/blob/main/docs/alerts.md"

// Alerts fire when they should, in their own time, and not before.
func TestAlertsInTheirTime(t *testing.T) {
	for _, args := range [][]string{
		{"check", "rules", "chart/monitoring/rules.yaml"},
		{"test", "rules", "testdata/rules_test.yaml"},
	} {
		if out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Each alert says what to do, in this repository; what is said there is about
// alerts that there are, and promtool is asked about all of them.
func TestAlertsSayWhatToDo(t *testing.T) {
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(read(t, "chart/monitoring/rules.yaml"), &rules); err != nil {
		t.Fatal(err)
	}
	doc, tried := string(read(t, "../docs/alerts.md")), string(read(t, "testdata/rules_test.yaml"))
	var alerts []string
	for _, group := range rules.Groups {
		for _, r := range group.Rules {
			alerts = append(alerts, r.Alert)
			if want := alertsDoc + "#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
				t.Errorf("%s: runbook %s, want %s", r.Alert, r.Annotations["runbook_url"], want)
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" || !slices.Contains([]string{"warning", "critical"}, r.Labels["severity"]) {
				t.Errorf("%s: %v, %v", r.Alert, r.Annotations, r.Labels)
			}
			if !strings.Contains(tried, `alertname="`+r.Alert+`"`) {
				t.Errorf("%s is not tried", r.Alert)
			}
		}
	}
	var told []string
	for _, heading := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(doc, -1) {
		told = append(told, heading[1])
	}
	if slices.Sort(alerts); !slices.Equal(alerts, slices.Sorted(slices.Values(told))) {
		t.Errorf("the alerts are %v, docs/alerts.md has %v", alerts, told)
	}
}

// dashboard is what is checked of Grafana's format.
type dashboard struct {
	UID, Title, Description string
	Templating              struct{ List []struct{ Name string } }
	Panels                  []struct {
		ID                 int
		Title, Description string
		Type               string
		GridPos            struct{ X, Y, W, H int }
		FieldConfig        struct{ Defaults struct{ Unit string } }
		Targets            []struct{ RefID, Expr string }
	}
}

// Grafana would take the dashboards: nothing overlaps or is there twice, all
// variables are known, and every panel says what it shows.
func TestDashboardsAreWhole(t *testing.T) {
	files, err := filepath.Glob("chart/monitoring/dashboards/*.json")
	if err != nil || len(files) != 4 {
		t.Fatalf("dashboards %v, %v", files, err)
	}
	variable := regexp.MustCompile(`\$\{?([a-zA-Z_]+)`)
	for _, file := range files {
		text := read(t, file)
		var d dashboard
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if d.UID != "tacit-"+strings.TrimSuffix(filepath.Base(file), ".json") || d.Title == "" || d.Description == "" {
			t.Errorf("%s: %q, %q, %q", file, d.UID, d.Title, d.Description)
		}
		known := []string{"__rate_interval", "__range", "__all"}
		for _, v := range d.Templating.List {
			known = append(known, v.Name)
		}
		for _, used := range variable.FindAllStringSubmatch(string(text), -1) {
			if !slices.Contains(known, used[1]) {
				t.Errorf("%s: there is no variable %s", file, used[0])
			}
		}
		taken, ids := map[[2]int]string{}, map[int]bool{}
		for _, p := range d.Panels {
			if ids[p.ID] || p.Title == "" || p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
				t.Errorf("%s: panel %d %q is not whole, or there twice", file, p.ID, p.Title)
			}
			ids[p.ID] = true
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
						t.Fatalf("%s: %q is over %q or the edge", file, p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
		}
	}
}

// The chart hands on what is in the files, and nothing unless it is asked.
func TestMonitoringInTheChart(t *testing.T) {
	for _, name := range []string{"PodMonitor", "PrometheusRule", "tacit-dashboard"} {
		if strings.Contains(render(t, nil), name) {
			t.Errorf("by default there is a %s", name)
		}
	}
	var rules struct{ Spec any }
	var want any
	boards, monitors := map[string]string{}, 0
	for _, doc := range documents(t, render(t, values{"metrics": values{"podMonitors": true, "rules": true, "dashboards": true}})) {
		var o struct {
			Kind     string
			Metadata struct{ Labels map[string]string }
			Data     map[string]string
		}
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		switch {
		case o.Kind == "PrometheusRule":
			if err := yaml.Unmarshal([]byte(doc), &rules); err != nil {
				t.Fatal(err)
			}
		case o.Kind == "PodMonitor":
			monitors++
		case o.Metadata.Labels["grafana_dashboard"] == "1":
			for name, text := range o.Data {
				boards[name] = text
			}
		}
	}
	if err := yaml.Unmarshal(read(t, "chart/monitoring/rules.yaml"), &want); err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(rules.Spec)
	if wanted, _ := json.Marshal(want); string(got) != string(wanted) {
		t.Errorf("the rules are\n%s\nwant\n%s", got, wanted)
	}
	if monitors != 3 || len(boards) != 4 || boards["tacit-mesh.json"] != string(read(t, "chart/monitoring/dashboards/mesh.json")) {
		t.Errorf("%d PodMonitors, %d dashboards, mesh:\n%s", monitors, len(boards), boards["tacit-mesh.json"])
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
