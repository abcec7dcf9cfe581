package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const top = "../.."

// stage is what one FROM of the Dockerfile makes.
type stage struct {
	base, user, entrypoint string
	files                  []string // "FROM: SOURCE... DIRECTORY" of each COPY
	runs, settings         []string
}

// stages reads a Dockerfile, as far as ours goes: anything else is an error.
func stages(t *testing.T, path string) map[string]*stage {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*stage{}
	now := &stage{}
	for line := range strings.Lines(string(text)) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		fields := strings.Fields(rest)
		switch word {
		case "", "#", "ARG", "WORKDIR":
		case "ENV":
			now.settings = append(now.settings, rest)
		case "FROM":
			now = &stage{base: fields[0]}
			all[fields[2]] = now
		case "COPY":
			now.files = append(now.files, rest)
		case "RUN":
			now.runs = append(now.runs, rest)
		case "USER":
			now.user = rest
		case "ENTRYPOINT":
			now.entrypoint = strings.Trim(rest, `[]"`)
		default:
			if !strings.HasPrefix(word, "#") {
				t.Fatalf("%s: this test does not understand %q", path, line)
			}
		}
	}
	return all
}

// The Dockerfile makes the images that are listed, and no others.
func TestDockerfile(t *testing.T) {
	all := stages(t, filepath.Join(top, "Dockerfile"))
	for _, name := range []string{"build", "userland"} {
		if all[name] == nil {
			t.Fatalf("no stage %s", name)
		}
	}
	for tag, command := range map[string]string{"": "-o /out/ ./cmd/...", tagInPod: "-tags inpod,grpcnotrace -o /out/inpod/ ./cmd/tacit"} {
		if !slices.ContainsFunc(all["build"].runs, func(r string) bool {
			return strings.HasPrefix(r, "go build ") && strings.HasSuffix(r, command) && strings.Contains(r, "-tags") == (tag != "")
		}) {
			t.Errorf("no go build that ends in %q", command)
		}
	}
	const version = "-X github.com/tacit-mesh/tacit/internal/version.release=${VERSION}\""
	if !slices.ContainsFunc(all["build"].settings, func(s string) bool {
		return strings.HasPrefix(s, "LDFLAGS=") && strings.HasSuffix(s, version)
	}) {
		t.Errorf("no LDFLAGS with %s: %q", version, all["build"].settings)
	}
	for _, run := range all["build"].runs {
		if strings.HasPrefix(run, "go build ") && !strings.Contains(run, `-ldflags="$LDFLAGS"`) {
			t.Errorf("programs of %q do not know their version", run)
		}
	}
	if !slices.Contains(all["userland"].runs, "sh /userland.sh /userland") ||
		!slices.Contains(all["userland"].files, UserlandScript+" /") {
		t.Errorf("the stage userland does not run %s: %+v", UserlandScript, all["userland"])
	}
	delete(all, "build")
	delete(all, "userland")
	for _, image := range All() {
		got := all[image.Name]
		delete(all, image.Name)
		if got == nil {
			t.Errorf("no stage %s", image.Name)
			continue
		}
		var want []string
		if image.Userland {
			want = append(want, "--from=userland /userland/ /")
		}
		programs := "--from=build"
		for _, p := range image.Programs {
			programs += " " + filepath.Join("/out", p.Tags, filepath.Base(p.Path))
		}
		want = append(want, programs+" "+bin)
		if diff := cmp.Diff(want, got.files); diff != "" {
			t.Errorf("files of %s (- listed, + in the Dockerfile):\n%s", image.Name, diff)
		}
		if got.base != "scratch" || got.user != image.User || got.entrypoint != image.Entrypoint || got.runs != nil {
			t.Errorf("%s: %+v, want it from scratch and as listed: %+v", image.Name, got, image)
		}
	}
	for name := range all {
		t.Errorf("stage %s is not listed in this package", name)
	}
}

// The programs exist, are built without cgo, and the one in the proxy's image
// knows nothing of Kubernetes.
func TestPrograms(t *testing.T) {
	for _, image := range All() {
		for _, p := range image.Programs {
			deps := exec.Command("go", "list", "-deps", "-tags", p.Tags, "./"+p.Package)
			deps.Dir = top
			deps.Env = append(os.Environ(), "CGO_ENABLED=0")
			out, err := deps.Output()
			if err != nil {
				t.Errorf("%s of image %s: %v%s", p.Package, image.Name, err, stderr(err))
				continue
			}
			if image.Name == "tacit-proxy" && bytes.Contains(out, []byte("k8s.io/client-go")) {
				t.Errorf("%s of image %s has client-go in it", p.Package, image.Name)
			}
		}
	}
}

// What the Dockerfile builds in one directory is what it builds in another one,
// byte for byte.
func TestProgramsAreReproducible(t *testing.T) {
	build := stages(t, filepath.Join(top, "Dockerfile"))["build"]
	here, err := filepath.Abs(top)
	if err != nil {
		t.Fatal(err)
	}
	var sums [2]map[string][sha256.Size]byte
	for i := range sums {
		dir := filepath.Join(t.TempDir(), fmt.Sprint("sources-", i))
		if err := os.Symlink(here, dir); err != nil {
			t.Fatal(err)
		}
		sums[i] = buildAsIn(t, build, dir)
	}
	for program, sum := range sums[0] {
		if sums[1][program] != sum {
			t.Errorf("%s differs by the directory that it is built in", program)
		}
	}
	for _, image := range All() {
		for _, p := range image.Programs {
			if _, ok := sums[0][filepath.Join(p.Tags, filepath.Base(p.Path))]; !ok {
				t.Errorf("%s of image %s is not built: %v", p.Path, image.Name, slices.Collect(maps.Keys(sums[0])))
			}
		}
	}
}

// buildAsIn runs what a stage runs, but for fetching modules, in a directory,
// and returns the sums of what that makes.
func buildAsIn(t *testing.T, s *stage, dir string) map[string][sha256.Size]byte {
	t.Helper()
	out := t.TempDir()
	script := "set -e\ncd " + dir + "\n"
	for _, setting := range s.settings {
		script += "export " + setting + "\n"
	}
	for _, run := range s.runs {
		if strings.HasPrefix(run, "go build ") {
			script += strings.ReplaceAll(run, "/out/", out+"/") + "\n"
		}
	}
	build := exec.Command("sh", "-c", script)
	build.Env = append(os.Environ(), "VERSION=v1.2.3")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\nin\n%s", err, said, script)
	}
	sums := map[string][sha256.Size]byte{}
	err := filepath.WalkDir(out, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(out, file)
		sums[name] = sha256.Sum256(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// What runs templates finds methods by name, which makes the linker keep all
// methods of all types: a third more of a program, and of its memory on a node.
func TestNothingFindsMethodsByName(t *testing.T) {
	for _, program := range []string{"cmd/tacit-proxy", "cmd/tacit-agent", "cmd/tacitd"} {
		build := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags=-dumpdep", "-o", t.TempDir(), "./"+program)
		build.Dir = top
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := build.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%.2000s", program, err, out)
		}
		for line := range bytes.Lines(out) {
			if bytes.Contains(line, []byte("<ReflectMethod>")) {
				t.Errorf("%s: %.200s", program, line)
				break
			}
		}
	}
}

// What is copied for the agent works without anything else around it.
func TestUserland(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("chroot needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("sh", filepath.Join(top, UserlandScript), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for program, want := range map[string]string{
		"iptables-nft-save": "nf_tables", "ip6tables-nft-restore": "nf_tables", "iptables-legacy-restore": "legacy",
		"ip6tables-legacy-save": "legacy", "iptables-restore": "nf_tables", "iptables": "nf_tables", "nft": "nftables v",
	} {
		out, err := exec.Command("chroot", dir, "/usr/sbin/"+program, "--version").CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v %s, want %s", program, err, out, want)
		}
	}
	// Each extension that the rules use is found and loads.
	out, err := exec.Command("chroot", dir, "/usr/sbin/iptables-nft", "-m", "conntrack", "-m", "connmark", "-m", "mark",
		"-m", "owner", "-m", "set", "-j", "REDIRECT", "--help").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "REDIRECT target options") {
		t.Errorf("extensions: %v\n%s", err, out)
	}
	if shells, _ := filepath.Glob(filepath.Join(dir, "usr/bin/*")); shells != nil {
		t.Errorf("programs that nobody runs: %v", shells)
	}
}

// Two runs give the same files, byte for byte.
func TestUserlandIsReproducible(t *testing.T) {
	var listings [2][]byte
	for i := range listings {
		dir := t.TempDir()
		if out, err := exec.Command("sh", filepath.Join(top, UserlandScript), dir).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		listings[i] = contents(t, dir)
	}
	if !bytes.Equal(listings[0], listings[1]) {
		t.Error("two runs of the script give different files")
	}
}

func contents(t *testing.T, dir string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// Times are set by who packs an image; all else must be the same.
	var same bytes.Buffer
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return same.Bytes()
		}
		if err != nil {
			t.Fatal(err)
		}
		same.WriteString(h.Name + " " + h.FileInfo().Mode().String() + " " + h.Linkname + "\n")
		if _, err := io.Copy(&same, r); err != nil {
			t.Fatal(err)
		}
	}
}

func stderr(err error) string {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return "\n" + string(e.Stderr)
	}
	return ""
}
