package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// program has a required flag, the skips, and one that may be contradictory.
func program() *cobra.Command {
	cmd := &cobra.Command{Use: "prog --from DIR", Args: cobra.NoArgs}
	cmd.Flags().String("from", "", "`directory` of things")
	bad := cmd.Flags().Bool("bad", false, "")
	skips := Skips(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		_, err := skips()
		if *bad {
			return Check(cmd, []string{"from"}, err, errors.New("--bad is never good"))
		}
		return Check(cmd, []string{"from"}, err, nil)
	}
	return Prepare(cmd)
}

func TestCheck(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--from x", ""},
		{"--from x --skips listed --skip-ports 80", ""},
		{"", "--from is missing: directory of things (see prog --help)"},
		{"--from=", "--from is empty: directory of things (see prog --help)"},
		{"--bad --skips listed", "3 flags are wrong (see prog --help)\n" +
			"  --from is missing: directory of things\n" +
			"  --skips=listed needs --skip-ports, the ports that pods may skip\n" +
			"  --bad is never good"},
		{"--from x --skips some", "--skips=some: want any, listed or none (see prog --help)"},
		{"--from x --skip-ports 80", "--skip-ports has no effect with --skips=any: leave it out, or set --skips=listed (see prog --help)"},
		{"--form x", "unknown flag: --form (see prog --help)"},
	} {
		cmd := program()
		cmd.SetArgs(strings.Fields(test.args))
		got := ""
		if err := cmd.Execute(); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.args, got, test.want)
		}
	}
}

func TestVersion(t *testing.T) {
	var out bytes.Buffer
	cmd := program()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--version"})
	if err := cmd.Execute(); err != nil || !strings.HasPrefix(out.String(), "prog ") || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("got %q, %v", out.String(), err)
	}
}
