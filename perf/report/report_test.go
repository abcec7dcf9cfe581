package report

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func sampleReport() *Report {
	r := &Report{Title: "<b>title</b>", Rounds: 9, Notes: []string{"on a machine"},
		Paths: []Path{{"direct", Plain}, {"tacit", Tacit}, {"one", Peer}, {"other", Peer}}}
	latency, rate := Metric{"round trips", "latency", "µs", false}, Metric{"round trips", "rate", "/s", true}
	for _, v := range []float64{30, 10, 20, 22, 18, 19, 21, 17, 23} {
		r.Note(latency, "tacit", v)
		r.Note(latency, "one", 3*v)
		r.Note(latency, "other", 2*v)
		r.Note(rate, "tacit", v)
		r.Note(rate, "other", 2*v)
	}
	r.Note(rate, "one", 10)
	r.Note(rate, "one", 70)
	return r
}

func TestRatios(t *testing.T) {
	r := sampleReport()
	for _, c := range []struct {
		name, path, than string
		want             float64
		row              int
	}{
		{"lower is better", "tacit", "one", 3, 0},
		{"higher is better, even number of samples", "tacit", "one", 0.5, 1},
		{"nothing to compare with", "tacit", "direct", 0, 0},
		{"nobody", "tacit", "", 0, 0},
	} {
		if got, _ := r.Rows[c.row].Ratio(c.path, c.than); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
	for row, want := range map[int]string{0: "other", 1: "one"} {
		r := sampleReport()
		r.Rows[1].Samples["one"] = []float64{41}
		if got := r.BestPeer(r.Rows[row]); got != want {
			t.Errorf("row %d: the best peer is %q, want %q", row, got, want)
		}
	}
}

func TestPrint(t *testing.T) {
	var b strings.Builder
	sampleReport().Print(&b, []Comparison{{Path: "tacit"}, {Path: "tacit", Than: "nobody"}})
	for _, want := range []string{"latency", "20.0 ±50%", "2.00 (other)", "latency, µs", "tacit vs best peer", "on a machine"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	if strings.Contains(b.String(), "nobody") {
		t.Errorf("compared with a path that was not measured:\n%s", &b)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	r := sampleReport()
	file, page := filepath.Join(dir, "r.json"), filepath.Join(dir, "r.html")
	if err := r.Write(file); err != nil {
		t.Fatal(err)
	}
	back, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := back.WritePage(page); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"&lt;b&gt;title", "latency", `class="bar tacit" style="width: 22.2%"`, "nothing in between"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in the page", want)
		}
	}
	if strings.Contains(string(text), "src=") || strings.Contains(string(text), "ZgotmplZ") {
		t.Error("the page needs something else, or the template refused a value")
	}
	if err := os.WriteFile(file, []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(file); err == nil || !strings.Contains(err.Error(), "is not what perf -o writes") {
		t.Errorf("another file: %v", err)
	}
}

func TestCompare(t *testing.T) {
	before, after := sampleReport(), sampleReport()
	for i := range after.Rows[0].Samples["tacit"] { // latency grows; so does a peer's rate
		after.Rows[0].Samples["tacit"][i] += 100
		after.Rows[1].Samples["other"][i] += 100
	}
	differences, err := Compare(before, after)
	if err != nil {
		t.Fatal(err)
	}
	verdicts := map[string]string{}
	for _, d := range differences {
		switch {
		case d.Worse():
			verdicts[d.Name+" "+d.Path] = "worse"
		case d.Real():
			verdicts[d.Name+" "+d.Path] = "better"
		}
	}
	if len(verdicts) != 2 || verdicts["latency tacit"] != "worse" || verdicts["rate other"] != "better" {
		t.Errorf("verdicts %v", verdicts)
	}
	var b strings.Builder
	PrintDifferences(&b, differences)
	for _, want := range []string{"WORSE", "better", "noise", "+500.0%"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	after.Rounds = 8
	if _, err := Compare(before, after); err == nil || !strings.Contains(err.Error(), "-rounds 9") {
		t.Errorf("too few rounds: %v", err)
	}
}

// Of a hundred figures that differ by chance some seem to differ for more.
func TestChanceIsNoDifference(t *testing.T) {
	before, after := &Report{Rounds: 9, Paths: []Path{{"tacit", Tacit}}}, &Report{Rounds: 9, Paths: []Path{{"tacit", Tacit}}}
	random := rand.New(rand.NewPCG(1, 2))
	seeming := 0
	for n := range 200 {
		for range 9 {
			before.Note(Metric{Name: strconv.Itoa(n)}, "tacit", 100+10*random.NormFloat64())
			after.Note(Metric{Name: strconv.Itoa(n)}, "tacit", 100+10*random.NormFloat64())
		}
	}
	differences, err := Compare(before, after)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences {
		if d.P < significance {
			seeming++
		}
		if d.Real() {
			t.Errorf("figure %s: %v to %v, p = %v", d.Name, d.Old, d.New, d.P)
		}
	}
	if seeming == 0 {
		t.Error("nothing seemed to differ: the test is void")
	}
}
