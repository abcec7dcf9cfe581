package suite

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/perf/load"
)

// Program is a load that others have written, which is what users know.
type Program struct {
	Name   string // of the program, and the kind of load
	Server string // the program that it asks; "": the load's own server
	Port   uint16 // of that
	what   string
	// Arguments make it run for about a time against the server.
	Arguments func(host, port string, long time.Duration) []string
	Input     string // for its standard input
	// Read takes the result of such a run from what it prints.
	Read func(out string, long time.Duration) (load.Result, error)
	tail bool // it says how long the slowest took
}

// The ports of servers that are not of this module.
const (
	RedisPort    = 6379
	PostgresPort = 5432
)

const programConns = 16

// Programs are all of these.
var Programs = []Program{
	{Name: "fortio", Port: load.HTTPPort, what: "HTTP/1.1 requests of fortio", Arguments: fortio, Read: readFortio, tail: true},
	{Name: "h2load", Port: load.HTTPPort, what: "HTTP/2 requests of h2load", Arguments: h2load, Read: readH2load},
	{Name: "redis-benchmark", Server: "redis-server", Port: RedisPort, what: "GETs of redis-benchmark", Arguments: redisBenchmark, Read: readRedisBenchmark, tail: true},
	{Name: "pgbench", Server: "initdb", Port: PostgresPort, what: "selects of pgbench", Arguments: pgbench, Input: "SELECT 1;\n", Read: readPgbench},
}

// Load is the name of its measurement.
func (p Program) Load() string { return p.what + ", " + connections(programConns) }

func (p Program) measurement() Measurement {
	m := Measurement{name: p.Load(), Config: load.Config{Kind: p.Name}}
	m.rate()
	if p.tail {
		for _, f := range fixedRate(m.name).found {
			if f.Name == "p50" || f.Name == "p99" {
				m.found = append(m.found, f)
			}
		}
	}
	m.processorTime()
	return m
}

func fortio(host, port string, long time.Duration) []string {
	return []string{"load", "-quiet", "-json", "-", "-qps", "0", "-c", strconv.Itoa(programConns), "-t", long.String(), "-p", "50,90,99,99.9", "http://" + host + ":" + port + "/"}
}

func readFortio(out string, _ time.Duration) (r load.Result, err error) {
	var said struct {
		ActualDuration    time.Duration
		RetCodes          map[string]int
		DurationHistogram struct {
			Count       int
			Max         float64
			Percentiles []struct{ Percentile, Value float64 }
		}
	}
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		return r, fmt.Errorf("what fortio says: %w", err)
	}
	d := said.DurationHistogram
	if said.RetCodes["200"] != d.Count || d.Count == 0 {
		return r, fmt.Errorf("fortio: of %d requests not all were answered with 200: %v", d.Count, said.RetCodes)
	}
	r = load.Result{Requests: d.Count, Elapsed: said.ActualDuration, Max: seconds(d.Max)}
	for _, p := range d.Percentiles {
		switch p.Percentile {
		case 50:
			r.P50 = seconds(p.Value)
		case 90:
			r.P90 = seconds(p.Value)
		case 99:
			r.P99 = seconds(p.Value)
		case 99.9:
			r.P999 = seconds(p.Value)
		}
	}
	return r, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// atOnce is how many requests take about a time, of a program that is told a
// number of them: a multiple of its connections.
func atOnce(perSecond int, long time.Duration) int {
	return max(1, int(float64(perSecond)*long.Seconds())/programConns) * programConns
}

// h2load can be told a time, but only in whole seconds.
func h2load(host, port string, long time.Duration) []string {
	return []string{"-n", strconv.Itoa(atOnce(10_000, long)), "-c", strconv.Itoa(programConns), "-m", "1", "http://" + host + ":" + port + "/"}
}

var h2loadEnd = regexp.MustCompile(`finished in ([0-9.]+(?:us|ms|s)),(?s:.*)requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded`)

func readH2load(out string, _ time.Duration) (r load.Result, err error) {
	found := h2loadEnd.FindStringSubmatch(out)
	if found == nil || found[2] != found[3] {
		return r, fmt.Errorf("h2load: not all requests succeeded:\n%s", out)
	}
	if r.Elapsed, err = time.ParseDuration(found[1]); err != nil {
		return r, fmt.Errorf("what h2load says: %w", err)
	}
	r.Requests, err = strconv.Atoi(found[3])
	return r, err
}

const redisPerSecond = 15_000

func redisBenchmark(host, port string, long time.Duration) []string {
	return []string{"-h", host, "-p", port, "-c", strconv.Itoa(programConns), "-n", strconv.Itoa(atOnce(redisPerSecond, long)), "-t", "get", "--csv"}
}

// readRedisBenchmark reads a line of names and one of values.
func readRedisBenchmark(out string, long time.Duration) (r load.Result, err error) {
	rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil || len(rows) != 2 {
		return r, fmt.Errorf("what redis-benchmark says is not a heading and a result: %q", out)
	}
	said := map[string]float64{}
	for i, name := range rows[0][1:] {
		if said[name], err = strconv.ParseFloat(rows[1][i+1], 64); err != nil {
			return r, fmt.Errorf("what redis-benchmark says: %w", err)
		}
	}
	if said["rps"] <= 0 {
		return r, fmt.Errorf("redis-benchmark made no requests: %q", out)
	}
	ms := func(name string) time.Duration { return seconds(said[name] / 1e3) }
	n := atOnce(redisPerSecond, long)
	return load.Result{Requests: n, Elapsed: seconds(float64(n) / said["rps"]), P50: ms("p50_latency_ms"), P99: ms("p99_latency_ms"), Max: ms("max_latency_ms")}, nil
}

// pgbench can be told a time, but only in whole seconds.
func pgbench(host, port string, long time.Duration) []string {
	each := atOnce(5_000, long) / programConns
	return []string{"-h", host, "-p", port, "-U", "postgres", "-n", "-c", strconv.Itoa(programConns), "-t", strconv.Itoa(each), "-f", "-", "postgres"}
}

var (
	pgbenchDone = regexp.MustCompile(`number of transactions actually processed: (\d+)/(\d+)\n`)
	pgbenchRate = regexp.MustCompile(`tps = ([0-9.]+) `)
)

func readPgbench(out string, _ time.Duration) (r load.Result, err error) {
	done, rate := pgbenchDone.FindStringSubmatch(out), pgbenchRate.FindStringSubmatch(out)
	if done == nil || rate == nil || done[1] != done[2] {
		return r, fmt.Errorf("pgbench: not all transactions were processed:\n%s", out)
	}
	if r.Requests, err = strconv.Atoi(done[1]); err != nil {
		return r, fmt.Errorf("what pgbench says: %w", err)
	}
	perSecond, err := strconv.ParseFloat(rate[1], 64)
	if err != nil || perSecond <= 0 {
		return r, fmt.Errorf("what pgbench says: %s transactions a second", rate[1])
	}
	r.Elapsed = seconds(float64(r.Requests) / perSecond)
	return r, nil
}
