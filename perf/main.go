// Command perf measures what the mesh costs: the same load from one node to
// another directly, through Tacit, through pairs of HAProxies and Envoys with
// mutual TLS, and through Tacit's pods on a skipped port; and within a node.
//
// All paths are measured in turn in every round, so that what else the machine
// does hits all alike; what counts are the ratios within one run. The README
// beside this file says what was found and why.
//
// All get the same: CPUs and as many threads, TLS 1.3 with AES-128-GCM and
// P-256 certificates, TCP_NODELAY, the same client and server. Not alike are,
// at Tacit's expense, that it captures connections (NAT and connection
// tracking; the others are dialed on loopback), authorizes each of them by
// policy (the others take whatever their CA has signed) and exchanges keys that
// withstand quantum computers; and at the others', that they make a TLS
// connection for each of the client's, where Tacit's share one.
//
// What does not belong here: tests that fail when a number is bad.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/report"
	"github.com/tacit-mesh/tacit/test/world"
)

// config is what the command line says.
type config struct {
	manifests, programs    string
	json, page             string // files to write
	rounds, idle           int
	time                   time.Duration
	measurements, paths    *regexp.Regexp
	splitCPUs, encryptNear bool
}

const guide = `perf measures what the mesh costs, beside what others cost. As root:

  perf                                   everything; some 15 minutes
  perf -rounds 3 -time 300ms -run '1 connection|16 connections'
  perf -o now.json -page now.html        keep it, and as a page with charts
  perf compare before.json now.json      what has changed, beyond noise

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	runCommand(ctx)
	c, err := parse(os.Args[1:])
	if err != nil {
		exit(err)
	}
	world.Enter(func() int {
		if err := run(ctx, c); err != nil {
			fmt.Fprintln(os.Stderr, "perf:", err)
			return 1
		}
		return 0
	})
}

// runCommand does not return if the command line asks for a part of the work:
// pods run this very program.
func runCommand(ctx context.Context) {
	if len(os.Args) < 2 {
		return
	}
	command := map[string]func(context.Context, []string) error{"serve": serve, "load": putLoad, "compare": compare}[os.Args[1]]
	if command != nil {
		exit(command(ctx, os.Args[2:]))
	}
}

func parse(args []string) (c config, err error) {
	own, _ := os.Executable() // "" makes relative paths, as good a guess
	flags := flag.NewFlagSet("perf", flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), guide)
		flags.PrintDefaults()
	}
	flags.StringVar(&c.manifests, "manifests", "perf/manifests", "directory of the manifests")
	flags.StringVar(&c.programs, "programs", filepath.Dir(own), "directory of tacitd, tacit-agent and tacit-proxy")
	flags.StringVar(&c.json, "o", "", "write all samples to this file, as JSON")
	flags.StringVar(&c.page, "page", "", "write a page with charts to this file")
	flags.IntVar(&c.rounds, "rounds", 5, "rounds; the results are medians of them, and perf compare needs 9")
	flags.IntVar(&c.idle, "idle", 1000, "idle connections whose memory is measured")
	flags.DurationVar(&c.time, "time", time.Second, "duration of each single measurement")
	flags.BoolVar(&c.splitCPUs, "split-cpus", false, "give each node CPUs of its own, as far as there are enough")
	flags.BoolVar(&c.encryptNear, "encrypt-local", false, "let Tacit encrypt within a node as well")
	measurements := flags.String("run", "", "measure only what matches this regular expression, such as 'round trips' or 'memory'")
	paths := flags.String("paths", "", "measure only the paths that match this regular expression, such as 'tacit|envoy'")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if c.measurements, err = regexp.Compile(*measurements); err != nil {
		return c, fmt.Errorf("-run: %w", err)
	}
	if c.paths, err = regexp.Compile(*paths); err != nil {
		return c, fmt.Errorf("-paths: %w", err)
	}
	return c, nil
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "perf:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve is the load's server, in a pod.
func serve(ctx context.Context, _ []string) error { return load.Serve(ctx) }

// putLoad is the load's client, in a pod. It answers with JSON, or, holding
// idle connections, with a line once it has them; those it keeps until its
// standard input ends.
func putLoad(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("load wants one argument, its configuration as JSON")
	}
	var c load.Config
	if err := json.Unmarshal([]byte(args[0]), &c); err != nil {
		return err
	}
	if c.Kind == kindIdle {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		return load.Hold(ctx, c.Address, c.Conns, func() {
			_, _ = fmt.Fprintln(os.Stdout, "ready")
			go func() {
				_, _ = os.Stdin.Read(make([]byte, 1))
				cancel()
			}()
		})
	}
	result, err := load.Run(ctx, c)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// compare fails if anything of Tacit's has become worse.
func compare(_ context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: perf compare BEFORE.json AFTER.json")
	}
	before, err := report.Read(args[0])
	if err != nil {
		return err
	}
	after, err := report.Read(args[1])
	if err != nil {
		return err
	}
	differences, err := report.Compare(before, after)
	if err != nil {
		return err
	}
	report.PrintDifferences(os.Stdout, differences)
	ours := func(d report.Difference) bool {
		return d.Worse() && slices.Contains(before.Paths, report.Path{Name: d.Path, Class: report.Tacit})
	}
	if slices.ContainsFunc(differences, ours) {
		return errors.New("beyond noise, Tacit has become worse")
	}
	return nil
}

func run(ctx context.Context, c config) error {
	r, err := measureWorld(ctx, c)
	if err != nil {
		return err
	}
	progress("")
	r.Print(os.Stdout, comparisons)
	if c.json != "" {
		err = r.Write(c.json)
	}
	if c.page != "" {
		err = errors.Join(err, r.WritePage(c.page))
	}
	return err
}

// measureWorld measures everything in a world made for that.
func measureWorld(ctx context.Context, c config) (r *report.Report, err error) {
	wc := world.Config{Manifests: c.manifests, Programs: c.programs, SplitCPUs: c.splitCPUs}
	if c.encryptNear {
		wc.ProxyArgs = []string{"--direct-local=false"}
	}
	w, err := world.New(ctx, wc)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	paths, absent, stop, err := makePaths(ctx, w, c)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return nil, err
	}
	r = newReport(c, paths, absent)
	return r, measureAll(ctx, c, paths, r)
}

// progress rewrites one line of the terminal, if there is one.
func progress(format string, args ...any) {
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprintf(os.Stderr, "\r\x1b[K"+format, args...)
	}
}
