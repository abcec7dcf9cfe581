// Package suite is the work that the mesh's cost is measured with, in rounds
// that go through all ways between a client and a server in turn, so that what
// else the machine does hits all alike: what counts are the ratios within one
// run.
//
// What does not belong here: the ways themselves, which are those of one
// machine (perf/local) or of a cluster (cmd/tacit/bench), and how the figures are
// shown (perf/report).
package suite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/report"
)

// The names of paths, wherever they are.
const (
	Direct     = "direct"
	DirectNear = "direct, one node"
	Skipped    = "skipped"
	Tacit      = "tacit"
	TacitNear  = "tacit, one node"
	TacitHTTP  = "tacit, HTTP"
	EnvoyHTTP  = "envoy, HTTP"
	// BesideHTTP is Tacit while policies about requests are in force on the same
	// nodes; on the path Tacit none are.
	BesideHTTP = "tacit, beside HTTP"
)

// Comparisons are the ratios that matter.
var Comparisons = []report.Comparison{
	{Path: Tacit}, {Path: Tacit, Than: Direct}, {Path: Skipped, Than: Direct},
	{Path: TacitNear, Than: Tacit}, {Path: TacitNear, Than: DirectNear},
	{Path: TacitHTTP, Than: EnvoyHTTP}, {Path: TacitHTTP, Than: Direct}, {Path: BesideHTTP, Than: Tacit},
}

// Options say how much is measured.
type Options struct {
	Rounds int
	Time   time.Duration // of each single measurement
	Idle   []int         // numbers of idle connections whose memory is measured
	Full   bool          // also what tells little more than the rest
	// Only what matches is measured, on paths that match.
	Measurements, Paths *regexp.Regexp
	// Progress is told what is under way.
	Progress func(format string, args ...any)
}

// Path is one way from a client to a server.
type Path struct {
	report.Path
	// Takes says whether a kind of load can go this way.
	Takes func(kind string) bool
	// Load puts a load on; its address is the path's to say.
	Load func(context.Context, load.Config) (load.Result, error)
	// Usage is that of the proxies in between; nil without any.
	Usage func(context.Context) (Usage, error)
	// Prepare makes the path what it is, before each load; nil where it always is.
	Prepare func(context.Context) error
	Proxies int
	// CountsCalls is whether all that the proxies ask of the kernel is counted.
	CountsCalls bool
	// Hold keeps idle connections open until it is told to release them. Only
	// paths whose proxies are nobody else's have it.
	Hold func(ctx context.Context, n int) (release func() error, err error)
	// Beside are neighbours of the client that disturb it, by name.
	Beside map[string]*Path
}

// Settle waits until the path carries a connection.
func (p *Path) Settle(ctx context.Context, most time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	kind := load.Connect
	if !p.Takes(kind) {
		kind = load.HTTP
	}
	for {
		r, err := p.Load(ctx, load.Config{Kind: kind, Conns: 1, Time: time.Millisecond})
		if err == nil && r.Requests > 0 {
			return nil
		}
		err = cmp.Or(err, errors.New("the client was too late for its own load"))
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w, last: %w", p.Name, ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Run measures everything on all paths and notes it in r.
func Run(ctx context.Context, o Options, paths []*Path, r *report.Report) error {
	// Idle memory comes first: later, a proxy would use again what the load
	// before made it take.
	if o.Measurements.MatchString(memory) {
		if err := measureMemory(ctx, o, paths, r); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	for round := range o.Rounds {
		for _, m := range All() {
			if !o.Measurements.MatchString(m.name) || m.full && !o.Full {
				continue
			}
			for i := range paths {
				p := paths[(i+round)%len(paths)] // nobody is always the first
				o.Progress("round %d of %d: %s: %s", round+1, o.Rounds, m.name, p.Name)
				if err := p.measure(ctx, o, m, r); err != nil {
					return fmt.Errorf("%s: %s: %w", p.Name, m.name, err)
				}
			}
		}
	}
	o.Progress("")
	return nil
}

// measure runs one load on the path and notes what it found.
func (p *Path) measure(ctx context.Context, o Options, m Measurement, r *report.Report) error {
	if !p.Takes(m.Kind) || m.beside != "" && p.Beside[m.beside] == nil {
		return nil
	}
	if p.Prepare != nil {
		if err := p.Prepare(ctx); err != nil {
			return err
		}
	}
	before, err := p.usage(ctx)
	if err != nil {
		return err
	}
	got, err := p.loaded(ctx, o, m)
	if err != nil {
		return err
	}
	after, err := p.usage(ctx)
	if err != nil {
		return err
	}
	used := Usage{CPU: after.CPU - before.CPU, Calls: after.Calls - before.Calls, Memory: after.Memory}
	for _, f := range m.found {
		if p.has(f.Name) {
			r.Note(f.Metric, p.Name, f.read(got, used))
		}
	}
	return nil
}

// loaded is the result of the measurement's load, beside a neighbour's if it is
// to have one.
func (p *Path) loaded(ctx context.Context, o Options, m Measurement) (got load.Result, err error) {
	all, ctx := errgroup.WithContext(ctx)
	if m.beside != "" {
		all.Go(func() error {
			other := *m.other
			other.Time = o.Time
			_, err := p.Beside[m.beside].Load(ctx, other)
			return err
		})
	}
	all.Go(func() (err error) {
		own := m.Config
		own.Time = o.Time
		got, err = p.Load(ctx, own)
		return err
	})
	return got, all.Wait()
}

func (p *Path) usage(ctx context.Context) (Usage, error) {
	if p.Usage == nil {
		return Usage{}, nil
	}
	return p.Usage(ctx)
}

// has says whether the path has a figure of that name.
func (p *Path) has(name string) bool {
	if name == calls {
		return p.CountsCalls
	}
	return p.Usage != nil || !strings.HasPrefix(name, ofProxies)
}
