// Package cli is what the command lines of all programs have in common: how
// they start and end, and how they say what is wrong with the flags.
//
// What does not belong here: the flags of one program alone.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/internal/memlimit"
	"github.com/tacit-mesh/tacit/internal/version"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Main runs a program until it ends or is told to (SIGTERM, SIGINT), and
// exits: with 0 if it ended because it was told to.
func Main(cmd *cobra.Command) {
	if err := memlimit.Set(); err != nil { // it runs as well without, as long as it keeps within
		fmt.Fprintf(os.Stderr, "%s: %v\n", cmd.Name(), err)
	}
	// To the very end: a second signal would kill a program that is just ending.
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := Prepare(cmd).ExecuteContext(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", cmd.Name(), err)
		os.Exit(1)
	}
}

// Prepare gives a program its version, and leaves it to the caller to print
// errors, which name the help instead of bringing all of it.
func Prepare(cmd *cobra.Command) *cobra.Command {
	cmd.Version = version.String()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())
	})
	return cmd
}

// Check returns all that is wrong with the flags at once: those that are
// required and missing, and other problems, of which some may be nil.
func Check(cmd *cobra.Command, required []string, problems ...error) error {
	var lines []string
	for _, name := range required {
		f := cmd.Flag(name)
		meaning := strings.ReplaceAll(f.Usage, "`", "") // around the value's name
		switch {
		case !f.Changed:
			lines = append(lines, fmt.Sprintf("--%s is missing: %s", name, meaning))
		case f.Value.String() == "":
			lines = append(lines, fmt.Sprintf("--%s is empty: %s", name, meaning))
		}
	}
	for _, err := range problems {
		if err != nil {
			lines = append(lines, err.Error())
		}
	}
	see := fmt.Sprintf("(see %s --help)", cmd.CommandPath())
	switch len(lines) {
	case 0:
		return nil
	case 1:
		return errors.New(lines[0] + " " + see)
	}
	return fmt.Errorf("%d flags are wrong %s\n  %s", len(lines), see, strings.Join(lines, "\n  "))
}

// Skips adds the flags --skips and --skip-ports, and returns how to read them.
func Skips(cmd *cobra.Command) func() (model.SkipSettings, error) {
	mode := cmd.Flags().String("skips", string(model.SkipsAny), "which ports pods may skip by annotation, as a `mode`: any, listed (those in --skip-ports) or none; the same for tacitd and all agents")
	ports := cmd.Flags().String("skip-ports", "", "`ports` that --skips=listed allows, such as 5432,6379,9000-9100")
	return func() (model.SkipSettings, error) {
		m, err := model.ParseSkipMode(*mode)
		if err != nil {
			return model.SkipSettings{}, fmt.Errorf("--skips=%s: want any, listed or none", *mode)
		}
		listed, err := model.ParsePorts(*ports)
		switch {
		case err != nil:
			return model.SkipSettings{}, fmt.Errorf("--skip-ports: %w", err)
		case m == model.SkipsListed && len(listed) == 0:
			return model.SkipSettings{}, errors.New("--skips=listed needs --skip-ports, the ports that pods may skip")
		case m != model.SkipsListed && len(listed) > 0:
			return model.SkipSettings{}, fmt.Errorf("--skip-ports has no effect with --skips=%s: leave it out, or set --skips=listed", m)
		}
		return model.SkipSettings{Mode: m, Listed: listed}, nil
	}
}
