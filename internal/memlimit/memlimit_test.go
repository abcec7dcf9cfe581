package memlimit

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

func TestLimitOfCgroups(t *testing.T) {
	const none = int64(math.MaxInt64)
	for _, c := range []struct {
		name   string
		groups string // /proc/self/cgroup
		files  map[string]string
		want   int64
	}{
		{"version 2, in a namespace of its own", "0::/\n", map[string]string{"sys/fs/cgroup/memory.max": "268435456\n"}, 256 << 20},
		{"version 2, as the node sees it", "0::/kubepods/pod1/c\n", map[string]string{"sys/fs/cgroup/kubepods/pod1/c/memory.max": "100\n", "sys/fs/cgroup/kubepods/pod1/memory.max": "200\n"}, 100},
		{"the pod's is less than the container's", "0::/kubepods/pod1/c\n", map[string]string{"sys/fs/cgroup/kubepods/pod1/c/memory.max": "max\n", "sys/fs/cgroup/kubepods/pod1/memory.max": "200\n"}, 200},
		{"version 2, the path of another mount", "0::/kubepods/pod1/c\n", map[string]string{"sys/fs/cgroup/memory.max": "300\n"}, 300},
		{"version 1", "11:cpu,cpuacct:/c\n4:memory:/docker/c\n", map[string]string{"sys/fs/cgroup/memory/docker/c/memory.limit_in_bytes": "400\n", "sys/fs/cgroup/cpu/c/memory.max": "1\n"}, 400},
		{"version 1 without a limit", "4:memory:/docker/c\n", map[string]string{"sys/fs/cgroup/memory/docker/c/memory.limit_in_bytes": "9223372036854771712\n"}, 9223372036854771712},
		{"both", "4:memory:/c\n0::/c\n", map[string]string{"sys/fs/cgroup/memory/c/memory.limit_in_bytes": "500\n"}, 500},
		{"no limit", "0::/\n", map[string]string{"sys/fs/cgroup/memory.max": "max\n"}, none},
		{"no files", "0::/\n", nil, none},
		{"no control groups", "", nil, none},
		{"not a number", "0::/\n", map[string]string{"sys/fs/cgroup/memory.max": "plenty\n"}, 0},
		{"not such a file", "nonsense\n", nil, 0},
	} {
		root := fstest.MapFS{}
		if c.groups != "" {
			root["proc/self/cgroup"] = &fstest.MapFile{Data: []byte(c.groups)}
		}
		for name, text := range c.files {
			root[name] = &fstest.MapFile{Data: []byte(text)}
		}
		got, err := ofCgroups(root)
		if got != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%s: %d, %v; want %d", c.name, got, err, c.want)
		}
	}
}

// Of a real process in a group with a limit, and the environment comes first.
func TestSet(t *testing.T) {
	const variable = "TACIT_TEST_MEMORY_LIMIT"
	if os.Getenv(variable) != "" {
		if err := Set(); err != nil {
			t.Fatal(err)
		}
		t.Logf("limit is %d.", debug.SetMemoryLimit(-1))
		return
	}
	const limit = 1_000 << 20
	run := func(environment ...string) string {
		// It moves there by itself, so that no part of it runs outside.
		cmd := exec.Command("sh", "-ec", `echo $$ >"$GROUP/cgroup.procs"; exec "$@"`, "sh", os.Args[0], "-test.run=^TestSet$", "-test.v")
		cmd.Env = append(append(os.Environ(), variable+"=1", "GROUP="+newGroup(t, limit)), environment...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	if want := "limit is " + strconv.Itoa(limit/10*9) + "."; !strings.Contains(run(), want) {
		t.Errorf("no %q in %s", want, run())
	}
	if out := run("GOMEMLIMIT=2GiB"); !strings.Contains(out, "limit is 2147483648.") {
		t.Errorf("with GOMEMLIMIT: %s", out)
	}
}

// newGroup makes a control group with a limit of memory.
func newGroup(t *testing.T, limit int) string {
	t.Helper()
	const top = "/sys/fs/cgroup"
	mount, file := top, unifiedFile
	if _, err := os.Stat(top + "/memory"); err == nil {
		mount, file = top+"/memory", legacyFile
	}
	dir := filepath.Join(mount, "tacit-test-"+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(limit))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no control group can be made: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(dir+"/"+file, []byte(strconv.Itoa(limit)), 0o600); err != nil {
		t.Skipf("no limit can be set: %v", err)
	}
	return dir
}
