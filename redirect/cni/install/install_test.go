package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tacit-mesh/tacit/redirect/cni"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	bridgeList = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"k8s\",\n  \"plugins\": [\n    {\"type\": \"bridge\", \"mtu\":  1450}\n  ]\n}\n"
	single     = "{ \"cniVersion\": \"0.4.0\", \"name\": \"old\",\n  \"type\": \"ptp\" }\n"
)

// place is the directories of a node.
type place struct {
	t         *testing.T
	bin, conf string
	*Installer
	logs *observer.ObservedLogs
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{t: t, bin: filepath.Join(dir, "bin"), conf: filepath.Join(dir, "conf")}
	for _, d := range []string{p.bin, p.conf} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.write(filepath.Join(dir, "tacit-cni"), "program")
	core, logs := observer.New(zap.InfoLevel)
	p.logs = logs
	p.Installer = New(Config{
		Binary: filepath.Join(dir, "tacit-cni"), BinDir: p.bin, ConfDir: p.conf,
		Entry:      cni.Config{Type: cni.Type, Socket: "/run/s", TimeoutSeconds: 20},
		Kubeconfig: func() ([]byte, error) { return []byte("secret"), nil },
		Log:        zap.New(core),
	})
	return p
}

func (p *place) write(path, text string) {
	p.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) configure(name, text string) { p.write(filepath.Join(p.conf, name), text) }

// everything is all files of the node, with mode and content.
func (p *place) everything() map[string]string {
	p.t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(filepath.Dir(p.bin), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, filepath.Dir(p.bin))] = fmt.Sprintf("%v %s", info.Mode(), text)
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return files
}

// plugins are those of the configuration that a runtime would use.
func (p *place) plugins() []string {
	p.t.Helper()
	files, err := libcni.ConfFiles(p.conf, []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) == 0 {
		p.t.Fatalf("configurations: %v, %v", files, err)
	}
	list, err := libcni.ConfListFromFile(files[0])
	if err != nil {
		p.t.Fatal(err)
	}
	var types []string
	for _, plugin := range list.Plugins {
		types = append(types, plugin.Network.Type)
	}
	return types
}

func (p *place) run() {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			p.t.Errorf("the installer ended with %v", err)
		}
	})
}

func (p *place) until(what string, holds func() bool) {
	p.t.Helper()
	timeout, tick := time.After(lookEvery/2), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-timeout:
			p.t.Fatalf("not in time: %s; the log says %v", what, p.logs.All())
		}
	}
}

func TestInstallAndUninstall(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"list":                       {"10-k8s.conflist": bridgeList},
		"single plugin":              {"10-old.conf": single},
		"the first of several":       {"10-k8s.conflist": bridgeList, "20-old.conf": single, "99-broken.conflist": "{"},
		"single plugin, .json":       {"10-old.json": single, "20-k8s.conflist": bridgeList},
		"others' files of any kinds": {"10-k8s.conflist": bridgeList, "05-note.txt": "x", "calico-kubeconfig": "y"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			for file, text := range files {
				p.configure(file, text)
			}
			before := p.everything()
			for range 2 { // the second time changes nothing
				if err := p.ensure(); err != nil {
					t.Fatal(err)
				}
			}
			if got := p.plugins(); len(got) != 2 || got[1] != cni.Type {
				t.Errorf("a runtime would use %v", got)
			}
			after := p.everything()
			if got := after["/bin/tacit-cni"]; got != "-rwxr-xr-x program" {
				t.Errorf("the binary is %s", got)
			}
			if got := after["/bin/.tacit-cni/kubeconfig"]; got != "-rw------- secret" {
				t.Errorf("the kubeconfig is %s", got)
			}
			if err := p.KeepEnrolled([]string{"shop"}); err != nil {
				t.Fatal(err)
			}
			p.write(filepath.Join(p.conf, temporary+"1"), "left of a power cut")
			for range 2 {
				if err := p.Uninstall(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, p.everything()); diff != "" {
					t.Errorf("left behind (-before +after):\n%s", diff)
				}
			}
		})
	}
}

// The entry comes back whatever others do, and goes where a runtime looks.
func TestKeptInPlace(t *testing.T) {
	p := newPlace(t)
	p.run()
	p.until("said what is missing", func() bool { return p.logs.FilterMessageSnippet("not in place").Len() == 1 })
	if got := p.logs.FilterMessageSnippet("not in place").All()[0].ContextMap()["error"].(string); !strings.Contains(got, "no network configuration in "+p.conf) {
		t.Errorf("it said %s", got)
	}
	inPlace := func() bool { return p.Installed() && len(p.plugins()) == 2 }
	p.configure("10-k8s.conflist", bridgeList)
	p.until("installed", p.Installed)
	p.configure("10-k8s.conflist", bridgeList)
	p.until("installed again after a rewrite", inPlace)
	if err := os.Remove(filepath.Join(p.bin, cni.Type)); err != nil {
		t.Fatal(err)
	}
	p.until("the binary again", func() bool { _, err := os.Stat(filepath.Join(p.bin, cni.Type)); return err == nil })
	p.configure("10-k8s.conflist", "{ broken")
	p.until("said that it is broken", func() bool { return p.logs.FilterMessageSnippet("not in place").Len() == 2 })
	if got := p.logs.FilterMessageSnippet("not in place").All()[1].ContextMap()["error"].(string); !strings.Contains(got, "10-k8s.conflist: it is not JSON") {
		t.Errorf("it said %s", got)
	}
	if p.Installed() {
		t.Error("a broken configuration counts as installed")
	}
	p.configure("10-k8s.conflist", bridgeList)
	p.until("installed after it was mended", inPlace)
	p.configure("05-other.conflist", bridgeList)
	p.until("moved to the file that comes first now", func() bool {
		text, err := os.ReadFile(filepath.Join(p.conf, "10-k8s.conflist"))
		return err == nil && string(text) == bridgeList && inPlace()
	})
}

// A list made of a single plugin that somebody has changed since stays.
func TestUninstallKeepsChanges(t *testing.T) {
	p := newPlace(t)
	p.configure("10-old.conf", single)
	if err := p.ensure(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(p.conf, "10-old.conflist")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p.write(path, strings.Replace(string(text), "[", "[{\"type\":\"another\"},", 1))
	if err := p.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if got := p.plugins(); len(got) != 2 || got[0] != "another" || got[1] != "ptp" {
		t.Errorf("left are %v", got)
	}
}

// Whether the binary is in place is looked at often: any difference is seen,
// and none of it stays in memory.
func TestBinary(t *testing.T) {
	p := newPlace(t)
	const large = 8 << 20
	text := strings.Repeat("x", large)
	p.write(p.cfg.Binary, text)
	path := filepath.Join(p.bin, cni.Type)
	for _, other := range []string{"", "x", text[1:], text + "x", text[1:] + "y", text} {
		p.write(path, other)
		if err := p.copyBinary(); err != nil {
			t.Fatal(err)
		}
		if have, err := os.ReadFile(path); err != nil || string(have) != text {
			t.Errorf("%d bytes that differ were left in place: %v", len(other), err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("it cannot be run: %v, %v", info, err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := p.copyBinary()
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; err != nil || used > large/8 {
		t.Errorf("to look at %d bytes takes %d bytes of memory: %v", large, used, err)
	}
}

// An attempt that fails halfway, as on a full disk, is not the reason for the
// next one, which would fail as well.
func TestFailureIsNotTriedWithoutEnd(t *testing.T) {
	p := newPlace(t)
	p.cfg.Binary = filepath.Dir(p.cfg.Binary) // can be opened and not be read
	attempts := make(chan struct{}, 1000)
	kubeconfig := p.cfg.Kubeconfig
	p.cfg.Kubeconfig = func() ([]byte, error) {
		attempts <- struct{}{}
		return kubeconfig()
	}
	p.run()
	<-attempts
	p.configure("10-k8s.conflist", bridgeList)
	<-attempts
	later := time.After(10 * settle)
	for more := 0; ; {
		select {
		case <-attempts:
			if more++; more > 2 { // that of the file's second event, and a regular one
				t.Fatal("it is tried again and again")
			}
		case <-later:
			return
		}
	}
}

// While there is no new token for the plugin, the old one stays; without any,
// the plugin is not in place.
func TestKubeconfigStays(t *testing.T) {
	p := newPlace(t)
	p.configure("10-k8s.conflist", bridgeList)
	works := p.cfg.Kubeconfig
	fails := func() ([]byte, error) { return nil, errors.New("the API is away") }
	p.cfg.Kubeconfig = fails
	if err := p.ensure(); err == nil || !strings.Contains(err.Error(), "the API is away") {
		t.Errorf("without a kubeconfig: %v", err)
	}
	p.cfg.Kubeconfig = works
	if err := p.ensure(); err != nil {
		t.Fatal(err)
	}
	p.cfg.Kubeconfig = fails
	for range 3 {
		if err := p.ensure(); err != nil {
			t.Error(err)
		}
	}
	text, err := os.ReadFile(cni.Kubeconfig(p.bin))
	if err != nil || string(text) != "secret" {
		t.Errorf("the file holds %q, %v", text, err)
	}
	if n := p.logs.FilterMessageSnippet("as before").Len(); n != 1 {
		t.Errorf("it was logged %d times, want once", n)
	}
}
