package suite

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/perf/report"
)

// Flags are those of everything that measures, wherever that is.
type Flags struct {
	json, page          string
	rounds              int
	idle                []int
	full                bool
	time                time.Duration
	measurements, paths string
}

// Add adds them to a command.
func (f *Flags) Add(flags *pflag.FlagSet) {
	flags.StringVar(&f.json, "json", "", "write all samples to this `file`")
	flags.StringVar(&f.page, "page", "", "write a page with charts to this `file`")
	flags.IntVar(&f.rounds, "rounds", 5, "`number` of rounds; the results are medians of them, and compare needs 9")
	flags.IntSliceVar(&f.idle, "idle", []int{1000, 10000}, "`numbers` of idle connections whose memory is measured")
	flags.BoolVar(&f.full, "full", false, "measure round trips of every size at every number of connections, which takes a few minutes more")
	flags.DurationVar(&f.time, "time", time.Second, "`duration` of each single measurement")
	flags.StringVar(&f.measurements, "run", "", "measure only what matches this `expression`, such as 'round trips' or 'memory'")
	flags.StringVar(&f.paths, "paths", "", "measure only the paths that match this `expression`, such as 'tacit|envoy'")
}

// Options are what the flags say. Progress goes to a terminal alone.
func (f *Flags) Options(progress io.Writer) (o Options, err error) {
	o = Options{Rounds: f.rounds, Time: f.time, Idle: f.idle, Full: f.full, Progress: progressOn(progress)}
	if f.rounds < 1 || f.time <= 0 || slices.ContainsFunc(f.idle, func(n int) bool { return n < 1 }) {
		return o, errors.New("--rounds, --time and --idle: want more than 0")
	}
	if o.Measurements, err = regexp.Compile(f.measurements); err != nil {
		return o, fmt.Errorf("--run: %w", err)
	}
	if o.Paths, err = regexp.Compile(f.paths); err != nil {
		return o, fmt.Errorf("--paths: %w", err)
	}
	return o, nil
}

// progressOn rewrites one line of the terminal, if it is one.
func progressOn(out io.Writer) func(format string, args ...any) {
	if f, ok := out.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return func(format string, args ...any) { fmt.Fprintf(out, "\r\x1b[K"+format, args...) }
		}
	}
	return func(string, ...any) {}
}

// Show prints a report, and writes the files that were asked for.
func (f *Flags) Show(out io.Writer, r *report.Report) error {
	r.Print(out, Comparisons)
	var err error
	if f.json != "" {
		err = r.Write(f.json)
	}
	if f.page != "" {
		err = errors.Join(err, r.WritePage(f.page))
	}
	return err
}
