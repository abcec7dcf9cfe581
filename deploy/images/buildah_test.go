package images

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// A program that others build images with makes of the Dockerfile what is
// listed, and the same bytes each time. The stages before, which take Go and
// Debian from elsewhere, are stood in for by directories.
func TestBuildah(t *testing.T) {
	if _, err := exec.LookPath("buildah"); err != nil {
		t.Skip("needs buildah: run make test")
	}
	if os.Geteuid() != 0 {
		t.Skip("without root buildah needs more than there may be")
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(top, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	write("Dockerfile", lastStages(string(text)))
	write("empty/nothing", "")
	write("userland/userland/usr/sbin/iptables", "iptables")
	for _, image := range All() {
		for _, p := range image.Programs {
			write(filepath.Join("build/out", p.Tags, path.Base(p.Path)), p.Path+" "+p.Tags)
		}
	}
	for _, image := range All() {
		made := buildah(t, dir, image.Name)
		want := map[string]string{}
		for _, p := range image.Programs {
			want[p.Path] = p.Path + " " + p.Tags
		}
		if image.Userland {
			want["/usr/sbin/iptables"] = "iptables"
		}
		if diff := cmp.Diff(want, filesOf(t, made)); diff != "" {
			t.Errorf("files of %s (- listed, + made):\n%s", image.Name, diff)
		}
		config, err := made.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if c := config.Config; c.User != image.User || !slices.Equal(c.Entrypoint, []string{image.Entrypoint}) || c.Cmd != nil {
			t.Errorf("%s: user %q, entrypoint %q, arguments %q; want those of %+v", image.Name, c.User, c.Entrypoint, c.Cmd, image)
		}
		if !image.Userland { // the others are made alike
			continue
		}
		one, oneErr := made.Digest()
		makeOlder(t, filepath.Join(dir, "build"), filepath.Join(dir, "userland"))
		two, twoErr := buildah(t, dir, image.Name).Digest()
		if err := errors.Join(oneErr, twoErr); err != nil || one != two {
			t.Errorf("%s: made twice it is %v and %v, %v", image.Name, one, two, err)
		}
	}
}

// makeOlder has files look as if they had been made an hour ago.
func makeOlder(t *testing.T, dirs ...string) {
	t.Helper()
	ago := time.Now().Add(-time.Hour)
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(file string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Chtimes(file, ago, ago))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// lastStages are those that are made from nothing.
func lastStages(dockerfile string) string {
	var last strings.Builder
	wanted := false
	for line := range strings.Lines(dockerfile) {
		if strings.HasPrefix(line, "FROM ") {
			wanted = strings.HasPrefix(line, "FROM scratch ")
		}
		if wanted {
			last.WriteString(line)
		}
	}
	return last.String()
}

// buildah makes an image anew.
func buildah(t *testing.T, dir, target string) v1.Image {
	t.Helper()
	out := filepath.Join(t.TempDir(), target)
	storage := []string{"--root", filepath.Join(dir, "storage"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
	for _, args := range [][]string{
		{
			"build", "--isolation", "chroot", "--no-cache", "--timestamp", "0", "--target", target, "--tag", target, "--file", filepath.Join(dir, "Dockerfile"),
			"--build-context", "build=" + filepath.Join(dir, "build"), "--build-context", "userland=" + filepath.Join(dir, "userland"), filepath.Join(dir, "empty"),
		},
		{"push", target, "oci:" + out},
	} {
		if out, err := exec.Command("buildah", slices.Concat(storage, args)...).CombinedOutput(); err != nil {
			t.Fatalf("buildah %s: %v\n%s", args[0], err, out)
		}
	}
	index, err := layout.ImageIndexFromPath(out)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("%d images, %v", len(manifest.Manifests), err)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// filesOf are the files of an image, with what is in them.
func filesOf(t *testing.T, image v1.Image) map[string]string {
	t.Helper()
	content := mutate.Extract(image)
	defer func() { _ = content.Close() }()
	all := map[string]string{}
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag != tar.TypeDir {
			text, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			all[path.Join("/", header.Name)] = string(text) //nolint:gosec // a key of a map, no path of this machine
		}
	}
}
