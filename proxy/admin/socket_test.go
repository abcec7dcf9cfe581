package admin

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func mustListen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestSocketModes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "admin.sock")
	mustListen(t, path)
	for name, want := range map[string]os.FileMode{path: os.ModeSocket | 0o600, filepath.Dir(path): os.ModeDir | 0o700} {
		if info, err := os.Lstat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: mode %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("beside the socket: %v, %v", entries, err)
	}
}

func TestSocketOfDeadProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	mustListen(t, path)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the new socket does not answer: %v", err)
	}
	c.Close()
}

// While one process listens another waits, and comes up when the first ends.
func TestSocketTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	first := mustListen(t, path)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if l, err := listen(canceled, path); !errors.Is(err, context.Canceled) {
		t.Fatalf("a second listener beside the first: %v, %v", l, err)
	}
	second := make(chan net.Listener)
	go func() {
		l, _ := listen(t.Context(), path)
		second <- l
	}()
	first.Close()
	l := <-second
	if l == nil {
		t.Fatal("the second listener does not come up")
	}
	defer l.Close()
	first.Close() // must not take the second's file away
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the second socket does not answer: %v", err)
	}
	c.Close()
}

func TestSocketPathTaken(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                         "is no socket",
		filepath.Join(file, "below"): "directory",
		filepath.Join(dir, strings.Repeat("x", 108)): "admin socket",
	} {
		if _, err := listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("listen %s: %v, want %q", path, err, want)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("the file in the way: %q, %v", text, err)
	}
}
