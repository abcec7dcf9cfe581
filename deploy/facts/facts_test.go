package facts

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestConflists(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"20-late.conflist":  `{"plugins": [{"type": "late"}]}`,
		"10-first.conflist": `{"cniVersion": "1.0.0", "plugins": [{"type": "bridge", "x": 1}, {"type": "tacit-cni"}]}`,
		"15-single.conf":    `{"type": "ptp"}`,
		"17-broken.json":    `{"plugins": [`,
		"18-backup.bak":     `{"type": "ignored"}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := conflists(dir)
	if len(got) == 4 && strings.HasPrefix(got[2].Error, "not JSON: ") {
		got[2].Error = "not JSON"
	}
	want := []Conflist{
		{File: "10-first.conflist", Plugins: []string{"bridge", "tacit-cni"}}, {File: "15-single.conf", Plugins: []string{"ptp"}},
		{File: "17-broken.json", Error: "not JSON"}, {File: "20-late.conflist", Plugins: []string{"late"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := conflists(filepath.Join(dir, "absent")); len(got) != 1 || got[0].Error == "" {
		t.Errorf("a directory that is not there: %+v", got)
	}
}

// On this very machine: what is always so.
func TestLook(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, as the agent is")
	}
	before := time.Now()
	n := Look(t.Context(), "")
	if n.Time.Before(before) || time.Now().Before(n.Time) {
		t.Errorf("its clock says %v", n.Time)
	}
	if n.Kernel == "" || n.OpenFiles == 0 || n.Files == nil || n.Files.Max < n.Files.Now {
		t.Errorf("facts are missing: %+v", n)
	}
	for backend, problem := range n.Missing {
		t.Errorf("%s: %s", backend, problem) // the tests of capture need the same
	}
	text, err := json.Marshal(n)
	if err != nil || !strings.Contains(string(text), `"kernel":"`) {
		t.Errorf("%s, %v", text, err)
	}
}

// What the kernel or iptables refuses is said, with the program's own words.
func TestRulesThatAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, as the agent is")
	}
	if err := tryRules(t.Context(), "bpf", false); err == nil || !strings.Contains(err.Error(), "iptables-bpf-restore") {
		t.Errorf("a backend that there is not: %v", err)
	}
}
