// Package memlimit tells Go's runtime how much memory the program may take, as
// its control groups say: close to the limit it collects garbage more often,
// where the kernel would end the program, and with it all connections of a node.
//
// What does not belong here: what takes the memory, which has bounds of its own.
package memlimit

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// share of the limit is Go's. The rest is for what the runtime does not count:
// the program's text, and buffers of the kernel.
const share = 0.9

// Set tells the runtime, unless the environment does (GOMEMLIMIT). Without a
// limit nothing changes.
func Set() error {
	if os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	limit, err := ofCgroups(os.DirFS("/"))
	if err != nil {
		return fmt.Errorf("find the limit of memory: %w", err)
	}
	if limit < math.MaxInt64 {
		debug.SetMemoryLimit(int64(share * float64(limit)))
	}
	return nil
}

// Where control groups are, and what the limit's file is called there.
const (
	unified, unifiedFile = "sys/fs/cgroup", "memory.max"
	legacy, legacyFile   = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
)

// ofCgroups is the least limit of the program's group and all above, of either
// version of control groups (cgroups(7)); [math.MaxInt64] without one.
func ofCgroups(root fs.FS) (int64, error) {
	text, err := fs.ReadFile(root, "proc/self/cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return math.MaxInt64, nil // a kernel without
	}
	if err != nil {
		return 0, err
	}
	least := int64(math.MaxInt64)
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // ID:CONTROLLERS:PATH
		if len(fields) != 3 {
			return 0, fmt.Errorf("/proc/self/cgroup has a line %q", line)
		}
		mount, file := unified, unifiedFile
		if fields[1] == "memory" {
			mount, file = legacy, legacyFile
		} else if fields[1] != "" {
			continue
		}
		limit, err := leastAbove(root, mount, fields[2], file)
		if err != nil {
			return 0, err
		}
		least = min(least, limit)
	}
	return least, nil
}

// leastAbove looks at a group and all above it. Those that are not in the mount
// are not the container's to see, whose own group is then the mount itself.
func leastAbove(root fs.FS, mount, group, file string) (int64, error) {
	least := int64(math.MaxInt64)
	for at := path.Clean("/" + group); ; at = path.Dir(at) {
		text, err := fs.ReadFile(root, path.Join(mount, at, file))
		if err == nil {
			limit, err := parse(strings.TrimSpace(string(text)))
			if err != nil {
				return 0, fmt.Errorf("%s: %w", path.Join("/", mount, at, file), err)
			}
			least = min(least, limit)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		if at == "/" {
			return least, nil
		}
	}
}

func parse(text string) (int64, error) {
	if text == "max" {
		return math.MaxInt64, nil
	}
	limit, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, err
	}
	return int64(min(limit, math.MaxInt64)), nil
}
