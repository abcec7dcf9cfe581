package ca

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// In a directory, too, every process goes on where the one before it ended,
// whichever of the files that had written; ca.crt holds all roots throughout.
func TestDirRotation(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now().Truncate(time.Second)}
	open := func() (*Dir, *Authority) {
		t.Helper()
		d, err := OpenDir(dir, "cluster.local")
		if err != nil {
			t.Fatal(err)
		}
		return d, replica(t, d, c)
	}
	d, a := open()
	first := a.issuer().signer
	if err := d.Request("1"); err != nil {
		t.Fatal(err)
	}
	files := func() map[string]string {
		all := map[string]string{}
		for _, name := range []string{keyFile, rootFile} {
			all[name] = string(must(os.ReadFile(filepath.Join(dir, name))))
		}
		return all
	}
	for _, want := range []Phase{Distribute, Overlap, Retire, Done} {
		earlier := files()
		d, a = open()
		follow(t, a)
		if got := a.issuer().phase(); got != want {
			t.Fatalf("phase %s, want %s", got, want)
		}
		roots := string(a.Roots())
		// The process ends before it has written what people know.
		if want != Done {
			for name, text := range earlier {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		_, again := open()
		if !again.issuer().signer.Equal(a.issuer().signer) || string(again.Roots()) != roots {
			t.Fatalf("phase %s: the next process has another state", want)
		}
		published := must(parseCertificates([]byte(files()[rootFile])))
		if !published[0].Equal(a.issuer().signer) || len(published) != len(a.issuer().roots) {
			t.Errorf("phase %s: ca.crt holds %q", want, names(published))
		}
		c.at = c.at.Add(phase)
	}
	if a.issuer().signer.Equal(first) || len(a.issuer().roots) != 1 {
		t.Error("the old root is still there")
	}
	if text := string(must(os.ReadFile(filepath.Join(dir, rotationFile)))); strings.Contains(text, `"key"`) || strings.Contains(text, "nextKey") {
		t.Errorf("a key is left in %s: %s", rotationFile, text)
	}
	// What a rotation made may be replaced by hand, as ever.
	key, root := must2(Generate("cluster.local"))
	if err := errors.Join(replace(filepath.Join(dir, keyFile), 0o600, key), replace(filepath.Join(dir, rootFile), 0o644, root)); err != nil {
		t.Fatal(err)
	}
	if follow(t, a); string(a.Roots()) != string(root) {
		t.Error("a replacement is not followed")
	}
	_ = d
}

func must2(a, b []byte, err error) ([]byte, []byte) {
	if err != nil {
		panic(err)
	}
	return a, b
}

func TestDirSavesNothingOverAnother(t *testing.T) {
	d := must(OpenDir(t.TempDir(), "cluster.local"))
	state := must(d.Load(t.Context()))
	one, two := state.rotated(Rotation{Phase: Distribute, Request: "1"}), state.rotated(Rotation{Phase: Distribute, Request: "2"})
	if err := d.Save(t.Context(), state, one); err != nil {
		t.Fatal(err)
	}
	if err := d.Save(t.Context(), state, two); !errors.Is(err, ErrChanged) {
		t.Errorf("got %v", err)
	}
	if got := must(d.Load(t.Context())); got.Rotation.Request != "1" {
		t.Errorf("request %s", got.Rotation.Request)
	}
}

func TestDirRefuses(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(dir string) error
		want  string
	}{
		{"a state that others can read", func(dir string) error { return os.WriteFile(filepath.Join(dir, rotationFile), []byte("{}"), 0o644) }, "only its owner can read"},
		{"a state that is none", func(dir string) error { return os.WriteFile(filepath.Join(dir, rotationFile), []byte("secret"), 0o600) }, "6 bytes that are no state"},
		{"too large", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, rootFile), make([]byte, maxFile+1), 0o600)
		}, "the limit is"},
	} {
		dir := t.TempDir()
		must(OpenDir(dir, "cluster.local"))
		if err := test.spoil(dir); err != nil {
			t.Fatal(err)
		}
		_, err := Open(dir, "cluster.local")
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
}

// Whoever replaces the CA while it is rotated has the last word.
func TestDirReplacedDuringRotation(t *testing.T) {
	for _, during := range []Phase{Distribute, Overlap, Retire} {
		t.Run(string(during), func(t *testing.T) {
			dir, c := t.TempDir(), &clock{time.Now().Truncate(time.Second)}
			d := must(OpenDir(dir, "cluster.local"))
			a := replica(t, d, c)
			if err := d.Request("1"); err != nil {
				t.Fatal(err)
			}
			for follow(t, a); a.issuer().phase() != during; follow(t, a) {
				c.at = c.at.Add(phase)
			}
			key, root := must2(Generate("cluster.local"))
			if err := replace(filepath.Join(dir, keyFile), 0o600, key); err != nil {
				t.Fatal(err)
			}
			follow(t, a) // between the two
			if err := replace(filepath.Join(dir, rootFile), 0o644, root); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				follow(t, a)
				if got := a.issuer().phase(); string(a.Roots()) != string(root) || got != Abandoned {
					t.Fatalf("phase %s, roots %q", got, names(a.issuer().roots))
				}
				a = replica(t, must(OpenDir(dir, "cluster.local")), c)
				c.at = c.at.Add(2 * phase)
			}
			if err := d.Request("2"); err != nil {
				t.Fatal(err)
			}
			if follow(t, a).issuer().phase() != Distribute {
				t.Error("it cannot be rotated any more")
			}
		})
	}
}

// What people know is brought in line as soon as that can be done.
func TestDirCatchesUp(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now().Truncate(time.Second)}
	d := must(OpenDir(dir, "cluster.local"))
	a := replica(t, d, c)
	if err := d.Request("1"); err != nil {
		t.Fatal(err)
	}
	follow(t, a)
	file := filepath.Join(dir, rootFile)
	text := must(os.ReadFile(file))
	// A directory in its place cannot be written over.
	if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700), os.WriteFile(filepath.Join(file, "x"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	c.at = c.at.Add(phase)
	if err := a.follow(t.Context()); err == nil {
		t.Fatal("a file that cannot be written is no problem")
	}
	if err := errors.Join(os.RemoveAll(file), os.WriteFile(file, text, 0o644)); err != nil {
		t.Fatal(err)
	}
	follow(t, a)
	published := must(parseCertificates(must(os.ReadFile(file))))
	if a.issuer().phase() != Overlap || !published[0].Equal(a.issuer().signer) {
		t.Errorf("phase %s, ca.crt holds %q", a.issuer().phase(), names(published))
	}
}

// Of the last rotation people are told in the directory, and by that a process
// which finds another CA knows that its request has been answered.
func TestDirRemembersTheLastRotation(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now().Truncate(time.Second)}
	d := must(OpenDir(dir, "cluster.local"))
	if last := must(d.Published(t.Context())).Rotation; last != nil {
		t.Errorf("before there was any: %+v", last)
	}
	a := replica(t, d, c)
	if err := d.Request("1"); err != nil {
		t.Fatal(err)
	}
	follow(t, a)
	if err := d.publish(a.Status()); err != nil {
		t.Fatal(err)
	}
	last := must(d.Published(t.Context())).Rotation
	if last == nil || last.Request != "1" || last.Phase != Distribute || len(last.NextKey) > 0 {
		t.Errorf("published: %+v", last)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, keyFile)), os.Remove(filepath.Join(dir, rootFile)), os.Remove(filepath.Join(dir, rotationFile))); err != nil {
		t.Fatal(err)
	}
	another := must(OpenDir(dir, "cluster.local"))
	if got := follow(t, replica(t, another, c)).issuer(); got.phase() != Abandoned || len(got.roots) != 1 {
		t.Errorf("phase %s, %d roots: the request was answered again", got.phase(), len(got.roots))
	}
	if err := os.WriteFile(filepath.Join(dir, statusFile), []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	if last, err := another.Published(t.Context()); last.Rotation != nil || err != nil {
		t.Errorf("of what is no status: %+v, %v", last, err)
	}
}
