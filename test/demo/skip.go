package demo

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tacit-mesh/tacit/test/world"
)

const postgresPort = 5432

// skip shows that PostgreSQL's port, skipped by client and server, never meets
// a proxy, and what that is worth.
func (d *Demo) skip(ctx context.Context) error {
	reports, postgres := d.world.Pod("shop/reports"), d.world.Pod("shop/postgres")
	text, code, err := d.shell(ctx, reports.Key, "psql -h postgres -U postgres -Atc 'SELECT 6 * 7'")
	if err != nil {
		return err
	}
	if code != 0 || strings.TrimSpace(text) != "42" {
		return fmt.Errorf("psql: exit code %d", code)
	}
	if err := d.noProxySocket(ctx, reports, postgres); err != nil {
		return err
	}
	return d.compareLatency(ctx)
}

// noProxySocket looks at every socket that belongs to connections with the
// port, at both ends, while one is open.
func (d *Demo) noProxySocket(ctx context.Context, client, server *world.Pod) error {
	c, err := client.Dial(ctx, fmt.Sprintf("%s:%d", server.Address(), postgresPort))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	rows := [][]string{{"in pod", "socket", "held by"}}
	for _, pod := range []*world.Pod{client, server} {
		sockets, err := socketsOn(pod, postgresPort)
		if err != nil {
			return err
		}
		if len(sockets) == 0 {
			return fmt.Errorf("pod %s has no connection with port %d to look at", pod.Key, postgresPort)
		}
		for _, s := range sockets {
			if s.peer != client.Address().String() && s.peer != server.Address().String() {
				return fmt.Errorf("in pod %s the connection goes to %s instead of its other end", pod.Key, s.peer)
			}
			holder, err := holderOf(s.inode)
			if err != nil {
				return err
			}
			rows = append(rows, []string{pod.Key, s.text, holder})
			if strings.HasPrefix(holder, "tacit-") {
				return fmt.Errorf("in pod %s, %s holds the socket %s", pod.Key, holder, s.text)
			}
		}
	}
	for _, node := range d.world.Nodes() {
		for _, which := range []string{"live", "ended"} {
			all, err := connections(ctx, node, which, "", "")
			if err != nil {
				return err
			}
			for _, seen := range all {
				if seen.Destination.Address.Port() == postgresPort {
					return fmt.Errorf("node %s's proxy has seen connection %s to port %d", node.Name, seen.ID, postgresPort)
				}
			}
		}
	}
	d.out.table(rows)
	d.out.proven("the programs hold both ends of the connection themselves; no proxy has seen one to port %d", postgresPort)
	return nil
}

// socket is a row of the kernel's table.
type socket struct{ text, peer, inode string }

// socketsOn lists the established connections of a pod's namespace with a
// port at either end.
func socketsOn(pod *world.Pod, port int) ([]socket, error) {
	var out []socket
	err := pod.Do(func() error {
		for _, table := range []string{"tcp", "tcp6"} {
			data, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			for line := range strings.Lines(string(data)) {
				const local, remote, state, inode, established = 1, 2, 3, 9, "01"
				f := strings.Fields(line)
				if len(f) <= inode || f[state] != established {
					continue
				}
				from, fromPort, err1 := readEnd(f[local])
				to, toPort, err2 := readEnd(f[remote])
				if err := errors.Join(err1, err2); err != nil {
					return err
				}
				if fromPort == port || toPort == port {
					out = append(out, socket{fmt.Sprintf("%s:%d → %s:%d", from, fromPort, to, toPort), to, f[inode]})
				}
			}
		}
		return nil
	})
	return out, err
}

// readEnd reads the kernel's hexadecimal "ADDRESS:PORT", each 32 bits of the
// address in the machine's own byte order.
func readEnd(text string) (address string, port int, err error) {
	host, service, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if err != nil {
		return "", 0, fmt.Errorf("socket table: address %q: %w", text, err)
	}
	for word := range slices.Chunk(raw, 4) {
		binary.BigEndian.PutUint32(word, binary.NativeEndian.Uint32(word))
	}
	n, err := strconv.ParseUint(service, 16, 16)
	addr, ok := netip.AddrFromSlice(raw)
	if err != nil || !ok {
		return "", 0, fmt.Errorf("socket table: address %q", text)
	}
	return addr.Unmap().String(), int(n), nil
}

// holderOf is the name and number of the process that has a socket open.
func holderOf(inode string) (string, error) {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "", err
	}
	var holders []string
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || to != "socket:["+inode+"]" {
			continue // or closed meanwhile
		}
		pid := strings.Split(link, "/")[2]
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err != nil {
			continue
		}
		holder := strings.TrimSpace(string(name)) + " (process " + pid + ")"
		if pid == strconv.Itoa(os.Getpid()) {
			holder = "this demo, as the client"
		}
		if !slices.Contains(holders, holder) {
			holders = append(holders, holder)
		}
	}
	return strings.Join(holders, ", "), nil
}

var latencyLine = regexp.MustCompile(`latency average = ([0-9.]+) ms`)

// compareLatency runs the same transactions past the mesh, around it and
// through it.
func (d *Demo) compareLatency(ctx context.Context) error {
	paths := []struct{ name, client, server string }{
		{"direct: neither pod is in the mesh", "outside/visitor", "outside/postgres-direct"},
		{"skipped: both are, the port is not", "shop/reports", "shop/postgres"},
		{"meshed: mutual TLS and authorization", "shop/worker", "shop/postgres-meshed"},
	}
	script := filepath.Join(d.world.Dir(), "select.sql")
	if err := os.WriteFile(script, []byte("SELECT 1;\n"), 0o644); err != nil {
		return err
	}
	const rounds, transactions = 5, 1000
	d.out.command("each", fmt.Sprintf("pgbench -c 1 -t %d, `SELECT 1`, %d rounds in turn", transactions, rounds))
	times := make([][]float64, len(paths))
	for range rounds {
		for i, p := range paths {
			took, err := d.pgbench(ctx, p.client, d.world.Pod(p.server), script, transactions)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			times[i] = append(times[i], took)
		}
	}
	rows := [][]string{{"path", "median round trip", "to direct"}}
	median := make([]float64, len(paths))
	for i, p := range paths {
		slices.Sort(times[i])
		median[i] = times[i][rounds/2]
		rows = append(rows, []string{p.name, fmt.Sprintf("%.0f µs", median[i]*1000), fmt.Sprintf("× %.2f", median[i]/median[0])})
	}
	d.out.table(rows)
	if median[1] >= median[2] {
		return errors.New("the skipped port is not faster than the meshed one")
	}
	d.out.proven("skipping saves the whole way through the proxies")
	return nil
}

// pgbench returns the average latency in milliseconds.
func (d *Demo) pgbench(ctx context.Context, client string, server *world.Pod, script string, transactions int) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := d.world.Pod(client).Command(ctx, "pgbench", "-h", server.Address().String(), "-U", "postgres", "-n",
		"-c", "1", "-t", strconv.Itoa(transactions), "-f", script, "postgres").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	m := latencyLine.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench names no latency:\n%s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}
