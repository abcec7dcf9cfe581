package lint_test

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/lint"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/source/files"
)

// providers that CUSTOM policies name, some in the mesh and one outside of it.
var providers = map[string]*model.Provider{
	"gate":    {Name: "gate", Host: "gate.asked.svc.cluster.local", Port: 9000},
	"first":   {Name: "first", Host: "first.circle.svc.cluster.local", Port: 9000},
	"second":  {Name: "second", Host: "198.18.7.2", Port: 9001},
	"third":   {Name: "third", Host: "198.18.7.3", Port: 9002},
	"outside": {Name: "outside", Host: "192.0.2.1", Port: 9000},
}

var update = flag.Bool("update", false, "write the golden files")

func check(t *testing.T, file string) string {
	t.Helper()
	objects, errs := files.Read(file)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var b strings.Builder
	for _, f := range lint.Check(objects, build.Settings{Providers: providers}) {
		b.WriteString(f.String() + "\n")
	}
	return b.String()
}

func TestFindings(t *testing.T) {
	got := check(t, "testdata/doubtful.yaml")
	const golden = "testdata/doubtful.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got (write it with -update):\n%s", diff)
	}
}

func TestNothingToSay(t *testing.T) {
	if got := check(t, "testdata/clean.yaml"); got != "" {
		t.Errorf("found:\n%s", got)
	}
}
