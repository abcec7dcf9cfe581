package procs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	uid    = "3f1d7c9a-0b1e-4c55-9d64-0a3f5f0e8b11"
	other  = "8a6d2c1b-1111-4222-8333-444455556666"
	static = "0123456789abcdef0123456789abcdef"
)

func TestPodOf(t *testing.T) {
	const under = "3f1d7c9a_0b1e_4c55_9d64_0a3f5f0e8b11"
	for _, tt := range []struct{ name, groups, want string }{
		{"v1, cgroupfs", "4:memory:/kubepods/burstable/pod" + uid + "/0a1b\n3:cpuset:/\n", uid},
		{"v1, others' controllers first", "9:name=systemd:/\n4:memory:/kubepods/pod" + uid + "/0a1b\n0::/\n", uid},
		{"v2, cgroupfs", "0::/kubepods/besteffort/pod" + uid + "/0a1b\n", uid},
		{"v2, systemd", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-0a.scope\n", uid},
		{"systemd, guaranteed", "0::/kubepods.slice/kubepods-pod" + under + ".slice/crio-0a.scope\n", uid},
		{"systemd, below a kubelet's own group", "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + under + ".slice/a\n", uid},
		{"seen from another pod's group", "0::/../../pod" + uid + "/0a1b\n", uid},
		{"static pod", "0::/kubepods/burstable/pod" + static + "/0a1b\n", static},
		{"a group that a container made to look like another pod's", "0::/kubepods/pod" + uid + "/0a1b/pod" + other + "\n", uid},
		{"no pod", "0::/system.slice/containerd.service\n", ""},
		{"something that begins alike", "0::/machine.slice/podman-1.scope\n4:memory:/podium\n", ""},
		{"a slice of somebody else's", "0::/user-pod" + under + ".slice\n", ""},
		{"no lines of this form", "x\n:\n\n", ""},
	} {
		if got := PodOf(tt.groups); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestOfPod(t *testing.T) {
	root := t.TempDir()
	process := func(pid, group, stat string) {
		dir := filepath.Join(root, pid)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{"cgroup": "0::" + group + "\n", "stat": stat} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	const after = " S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 "
	process("20", "/kubepods/pod"+uid+"/a", "20 (a) b (c)"+after+"500 0 0")
	process("3", "/kubepods/pod"+uid+"/b", "3 (late)"+after+"900 0 0")
	process("4", "/kubepods/pod"+other+"/a", "4 (other)"+after+"1 0 0")
	process("5", "/kubepods/pod"+uid+"/b", "5 (ended")
	process("self", "/kubepods/pod"+uid+"/b", "")
	got, err := New(root).OfPod(uid)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{20, 3}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := New(filepath.Join(root, "none")).OfPod(uid); err == nil {
		t.Error("no error without /proc")
	}
}

func FuzzPodOf(f *testing.F) {
	f.Add("0::/kubepods/pod" + uid + "/a\n")
	f.Fuzz(func(t *testing.T, groups string) {
		if got := PodOf(groups); got != "" && len(got) < 32 {
			t.Errorf("%q is no UID", got)
		}
	})
}
