// Package procs finds the processes of a node's pods by the control groups
// into which the kubelet and the container runtime put them.
//
// It reads /proc alone, so that it does not matter which version of control
// groups the node has and where they are mounted. What does not belong here:
// what is then read of a process.
package procs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxAge is how long one look at all processes serves: pods that come at once
// share it.
const maxAge = 500 * time.Millisecond

// Table is the processes of a node.
type Table struct {
	root string

	mu    sync.Mutex
	at    time.Time
	byPod map[string][]int
}

// New makes a table of what is mounted at root, which is /proc or another
// mount of the node's.
func New(root string) *Table { return &Table{root: root} }

// OfPod lists the processes of the pod that the container runtime knows by
// this UID, the oldest first.
func (t *Table) OfPod(uid string) ([]int, error) {
	pids, err := t.look(uid)
	if err != nil {
		return nil, err
	}
	started := map[int]uint64{}
	for _, pid := range pids {
		if at, err := t.started(pid); err == nil { // else it has ended
			started[pid] = at
		}
	}
	pids = slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { _, ok := started[pid]; return !ok })
	slices.SortFunc(pids, func(a, b int) int {
		if started[a] != started[b] {
			return int(int64(started[a]) - int64(started[b]))
		}
		return a - b
	})
	return pids, nil
}

func (t *Table) look(uid string) ([]int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.at) < maxAge {
		return t.byPod[uid], nil
	}
	entries, err := os.ReadDir(t.root)
	if err != nil {
		return nil, fmt.Errorf("processes of the node: %w", err)
	}
	t.byPod = map[string][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		groups, err := os.ReadFile(filepath.Join(t.root, e.Name(), "cgroup"))
		if err != nil { // it has ended
			continue
		}
		if pod := PodOf(string(groups)); pod != "" {
			t.byPod[pod] = append(t.byPod[pod], pid)
		}
	}
	t.at = time.Now()
	return t.byPod[uid], nil
}

// started is when a process was, in clock ticks since boot: field 22 of
// /proc/PID/stat, of which the second is a name in parentheses (proc(5)).
func (t *Table) started(pid int) (uint64, error) {
	stat, err := os.ReadFile(filepath.Join(t.root, strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("process %d: %q is not what /proc/PID/stat looks like", pid, stat)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// PodOf is the UID of the pod that a process belongs to, by the lines
// "ID:CONTROLLERS:PATH" of its /proc/PID/cgroup; "" if it is none's.
func PodOf(groups string) string {
	for line := range strings.Lines(groups) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		// A container may make groups below its own, and so only the
		// outermost name counts.
		for segment := range strings.SplitSeq(parts[2], "/") {
			if uid := podUID(segment); uid != "" {
				return uid
			}
		}
	}
	return ""
}

// podUID reads a group's name as the kubelet makes it: podUID with the
// cgroupfs driver, [PREFIX-]kubepods[-CLASS]-podUID.slice with systemd, where
// the UID has underscores for dashes.
func podUID(segment string) string {
	name, isSlice := strings.CutSuffix(segment, ".slice")
	if !isSlice {
		uid, _ := strings.CutPrefix(name, "pod")
		return onlyUID(uid, uid != name)
	}
	at := strings.LastIndex(name, "-pod")
	if at < 0 || !strings.Contains(name[:at], "kubepods") {
		return ""
	}
	return onlyUID(strings.ReplaceAll(name[at+len("-pod"):], "_", "-"), true)
}

// onlyUID lets hexadecimal digits and dashes pass: UIDs, and the hashes that
// static pods have in their place.
func onlyUID(uid string, named bool) string {
	if !named || len(uid) < 32 || strings.Trim(uid, "0123456789abcdef-") != "" {
		return ""
	}
	return uid
}
