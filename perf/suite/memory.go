package suite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tacit-mesh/tacit/perf/report"
)

const memory = "memory"

var baseMemory = report.Metric{Load: memory, Name: "a proxy on an idle node", Unit: "MB"}

func idleMemory(n int) report.Metric {
	return report.Metric{Load: memory, Name: fmt.Sprintf("each of %d idle connections, in all proxies", n), Unit: "KB"}
}

// keptMemory is by how much a proxy has grown once idle connections have ended.
func keptMemory(n int) report.Metric {
	return report.Metric{Load: memory, Name: fmt.Sprintf("what a proxy keeps after %d idle connections", n), Unit: "MB"}
}

// calm is how long a proxy has to give memory back that it needs no more.
const calm = 25 * time.Second

// measureMemory compares the proxies' memory without and with idle
// connections, of all paths at the same time.
func measureMemory(ctx context.Context, o Options, paths []*Path, r *report.Report) error {
	paths = slices.DeleteFunc(slices.Clone(paths), func(p *Path) bool { return p.Hold == nil || p.Usage == nil })
	if len(paths) == 0 {
		return nil
	}
	if err := rest(ctx, o, "memory of idle proxies"); err != nil {
		return err
	}
	before := map[*Path]int64{}
	for _, p := range paths {
		u, err := p.Usage(ctx)
		if err != nil {
			return err
		}
		before[p] = u.Memory
		r.Note(baseMemory, p.Name, float64(u.Memory)/float64(p.Proxies)/1e6)
	}
	for _, n := range o.Idle {
		if err := measureIdle(ctx, o, n, paths, before, r); err != nil {
			return err
		}
	}
	return nil
}

// measureIdle compares with what each path's proxies held before, while they
// have idle connections and once these have ended.
func measureIdle(ctx context.Context, o Options, n int, paths []*Path, before map[*Path]int64, r *report.Report) error {
	grown := func(metric report.Metric, each func(*Path) float64) error {
		for _, p := range paths {
			u, err := p.Usage(ctx)
			if err != nil {
				return err
			}
			r.Note(metric, p.Name, float64(u.Memory-before[p])/each(p))
		}
		return nil
	}
	paths, release, err := hold(ctx, o, n, paths, r)
	if err == nil {
		err = rest(ctx, o, fmt.Sprintf("memory of %d idle connections", n))
	}
	if err == nil {
		err = grown(idleMemory(n), func(*Path) float64 { return float64(n) * 1e3 })
	}
	if err := errors.Join(err, release()); err != nil {
		return err
	}
	if err := rest(ctx, o, fmt.Sprintf("memory after %d idle connections", n)); err != nil {
		return err
	}
	return grown(keptMemory(n), func(p *Path) float64 { return float64(p.Proxies) * 1e6 })
}

// hold opens idle connections on each of the paths and says which of these have
// them: of a peer it is noted that it cannot, as one with two descriptors for
// each connection. Release is never nil.
func hold(ctx context.Context, o Options, n int, paths []*Path, r *report.Report) (held []*Path, release func() error, err error) {
	var all []func() error
	release = func() (err error) {
		for _, end := range all {
			err = errors.Join(err, end())
		}
		return err
	}
	for _, p := range paths {
		o.Progress("opening %d connections: %s", n, p.Name)
		end, err := p.Hold(ctx, n)
		switch {
		case err == nil:
			held, all = append(held, p), append(all, end)
		case p.Class == report.Peer && ctx.Err() == nil:
			r.Notes = append(r.Notes, fmt.Sprintf("%s cannot hold %d idle connections here.", p.Name, n))
		default:
			return nil, release, fmt.Errorf("%s: %d idle connections: %w", p.Name, n, err)
		}
	}
	return held, release, nil
}

// rest lets the proxies have nothing to do.
func rest(ctx context.Context, o Options, why string) error {
	o.Progress("%s, which takes %v to settle", why, calm)
	select {
	case <-time.After(calm):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
