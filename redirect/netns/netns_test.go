package netns

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The main thread cannot end, so it must not be the one that is given away
// to a namespace.
func TestMain(m *testing.M) {
	runtime.LockOSThread()
	os.Exit(m.Run())
}

// fresh makes a namespace that lives as long as the test.
func fresh(t *testing.T) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	type made struct {
		ns  *NS
		err error
	}
	result := make(chan made)
	go func() { // the thread ends with this goroutine
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- made{nil, err}
			return
		}
		ns, err := Open("/proc/thread-self/ns/net")
		result <- made{ns, err}
	}()
	m := <-result
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { m.ns.Close() })
	return m.ns
}

func TestDo(t *testing.T) {
	ns := fresh(t)
	home, err := At("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if ns.ID() == home {
		t.Fatal("the new namespace is the test's own")
	}
	want := errors.New("from inside")
	err = ns.Do(func() error {
		if id, err := At("/proc/thread-self/ns/net"); err != nil || id != ns.ID() {
			t.Errorf("inside it is %v, %v; want %v", id, err, ns.ID())
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if id, err := OfSocket(fd); err != nil || id != ns.ID() {
			t.Errorf("a socket made inside is of %v, %v", id, err)
		}
		out, err := exec.Command("readlink", "/proc/self/ns/net").Output()
		if own, _ := os.Readlink("/proc/thread-self/ns/net"); err != nil || string(out) != own+"\n" {
			t.Errorf("a program runs in %q, %v; want %q", out, err, own)
		}
		return want
	})
	if !errors.Is(err, want) {
		t.Errorf("Do returned %v", err)
	}
	// No thread may have stayed inside.
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if id, err := At(task); err == nil && id == ns.ID() {
			t.Errorf("%s is still inside", task)
		}
	}
}

// However many are inside at once, their threads do not stay.
func TestThreadsEnd(t *testing.T) {
	ns := fresh(t)
	const atOnce = 32
	threads := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(tasks)
	}
	before := threads()
	var inside, ended sync.WaitGroup
	inside.Add(atOnce)
	for range atOnce {
		ended.Go(func() {
			if err := ns.Do(func() error { inside.Done(); inside.Wait(); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	ended.Wait()
	// A thread ends after its goroutine has; the kernel does not say when.
	for deadline := time.Now().Add(30 * time.Second); threads() > before+atOnce/4; {
		if time.Now().After(deadline) {
			t.Fatalf("%d threads before, %d after %d were inside", before, threads(), atOnce)
		}
		runtime.Gosched()
	}
}

func TestOpenRefusesOtherFiles(t *testing.T) {
	if _, err := Open("/proc/self/ns/mnt"); !errors.Is(err, ErrNotNamespace) {
		t.Errorf("a mount namespace: %v", err)
	}
	if _, err := Open("/dev/null"); !errors.Is(err, ErrNotNamespace) {
		t.Errorf("a device: %v", err)
	}
	if _, err := Open("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}

func TestAfterClose(t *testing.T) {
	ns := fresh(t)
	ns.Close()
	if err := ns.Do(func() error { t.Error("ran"); return nil }); err == nil {
		t.Error("entered a namespace that was closed")
	}
}
