// Command perf measures what the mesh costs: the same load from one node to
// another directly, through Tacit, through a pair of HAProxies with mutual
// TLS, and through Tacit's pods on a skipped port.
//
// All paths are measured in turn in every round, so that what else the machine
// does hits all alike; what counts are the ratios within one run.
//
// Tacit and HAProxy get the same: CPUs and as many threads, TLS 1.3 with
// AES-128-GCM and P-256 certificates, TCP_NODELAY, the same client and server.
// Not alike are, at Tacit's expense, that it captures connections (NAT and
// connection tracking; HAProxy is dialed on loopback), authorizes each of them
// by policy (HAProxy takes whatever its CA has signed) and exchanges keys that
// withstand quantum computers; and at HAProxy's, that it makes a TLS connection
// for each of the client's, where Tacit's share one.
//
// Each node has CPUs of its own: else it is chance whether client and server
// share one, which doubles or halves the latency of a single connection. But a
// node with just one CPU makes client, proxy and server take turns; then
// batching, which saves CPU, lets the other node wait, and -split-cpus=false
// says more about many connections.
//
// What does not belong here: tests that fail when a number is bad.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/test/world"
)

// config is what the command line says.
type config struct {
	manifests, programs, output string
	rounds, idle                int
	time                        time.Duration
	only                        *regexp.Regexp // measurements
	split                       bool           // CPUs
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		exit(serve(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "load" {
		exit(load(os.Args[2:]))
	}
	c := config{}
	own, _ := os.Executable() // "" makes relative paths, as good a guess
	flag.StringVar(&c.manifests, "manifests", "perf/manifests", "directory of the manifests")
	flag.StringVar(&c.programs, "programs", filepath.Dir(own), "directory of tacitd, tacit-agent and tacit-proxy")
	flag.StringVar(&c.output, "o", "", "write all samples to this file, as JSON")
	flag.IntVar(&c.rounds, "rounds", 5, "rounds; the results are medians of them")
	flag.IntVar(&c.idle, "idle", 1000, "idle connections whose memory is measured")
	flag.DurationVar(&c.time, "time", time.Second, "duration of each single measurement")
	flag.BoolVar(&c.split, "split-cpus", true, "give each node CPUs of its own, as far as there are enough")
	only := flag.String("run", "", "measure only what matches this regular expression, such as 'round trips' or 'memory'")
	flag.Parse()
	var err error
	if c.only, err = regexp.Compile(*only); err != nil {
		exit(fmt.Errorf("-run: %w", err))
	}
	world.Enter(func() int {
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
		defer stop()
		if err := run(ctx, c); err != nil {
			fmt.Fprintln(os.Stderr, "perf:", err)
			return 1
		}
		return 0
	})
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "perf:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, c config) (err error) {
	w, err := world.New(ctx, world.Config{Manifests: c.manifests, Programs: c.programs, SplitCPUs: c.split})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	paths, stop, err := makePaths(ctx, w, c)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	r := newReport(c, paths)
	if err := measureAll(ctx, c, paths, r); err != nil {
		return err
	}
	r.print(os.Stdout)
	if c.output == "" {
		return nil
	}
	return r.write(c.output)
}

// measureAll fills the report. Idle memory comes first: later, a proxy would
// use again what the load before made it take.
func measureAll(ctx context.Context, c config, paths []*path, r *report) error {
	for _, p := range paths {
		if len(p.proxies) == 0 || !c.only.MatchString("memory") {
			continue
		}
		progress("%s: memory", p.name)
		if err := p.measureMemory(ctx, c, r); err != nil {
			return fmt.Errorf("%s: memory: %w", p.name, err)
		}
	}
	for round := range c.rounds {
		for _, m := range measurements {
			if !c.only.MatchString(m.name) {
				continue
			}
			for i := range paths {
				p := paths[(i+round)%len(paths)] // nobody is always the first
				progress("round %d of %d: %s: %s", round+1, c.rounds, m.name, p.name)
				if err := p.measure(ctx, c, m, r); err != nil {
					return fmt.Errorf("%s: %s: %w", p.name, m.name, err)
				}
			}
		}
	}
	progress("")
	return nil
}

// progress rewrites one line of the terminal.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "\r\x1b[K"+format, args...)
}
