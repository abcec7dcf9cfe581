package suite

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what proxies have used together so far, and hold now.
type Usage struct {
	CPU    time.Duration
	Calls  int64 // read(2), write(2) and their like; others use recv and send, which the kernel does not count
	Memory int64 // bytes that are resident
}

// Processes is the usage of processes by their numbers: proc_pid_stat(5), utime
// and stime, in ticks of 10 ms; proc_pid_io(5), syscr and syscw; and
// proc_pid_statm(5).
func Processes(pids []int) (total Usage, err error) {
	for _, pid := range pids {
		if err := total.add(pid); err != nil {
			return total, fmt.Errorf("a proxy has ended: %w", err)
		}
	}
	return total, nil
}

func (u *Usage) add(pid int) error {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture that Go knows
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err
	}
	// The name, in parentheses, may hold anything; field 3 is behind it.
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	fields := strings.Fields(rest)
	for _, i := range []int{14, 15} {
		n, err := strconv.ParseInt(fields[i-3], 10, 64)
		if err != nil {
			return err
		}
		u.CPU += time.Duration(n) * tick
	}
	io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(io)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if n, err := strconv.ParseInt(value, 10, 64); err == nil && (name == "syscr" || name == "syscw") {
			u.Calls += n
		}
	}
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return err
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		return err
	}
	u.Memory += resident * int64(os.Getpagesize())
	return nil
}
