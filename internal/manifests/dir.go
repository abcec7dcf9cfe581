package manifests

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Changes are read once none has come for quiet, but at the latest after
// patience: editors and copies write in several steps. What the kernel does
// not announce (network file systems, a link two links away) is found at the
// next resync.
const (
	quiet    = 100 * time.Millisecond
	patience = time.Second
	resync   = 30 * time.Second
)

// Dir is a tree of directories with manifests in *.yaml, *.yml and *.json.
// Names that begin with a dot are passed over.
type Dir struct {
	Path  string
	Kinds []Kind
	// Ignore reports whether a kind that is not among Kinds is none of the
	// caller's business; it is an error otherwise.
	Ignore func(apiVersion, kind string) bool
}

// Read reads the tree once. The objects are sorted by key; the errors are
// [*Error], sorted by place.
func (d *Dir) Read() ([]Object, []error) {
	w := watch{dir: d}
	w.rescan(func(string) {})
	return sorted(w.objects), w.errs
}

// ReadAll reads files, whatever their names, and directories as Read does, as
// if all of it were one tree. Path has no meaning for it.
func (d *Dir) ReadAll(paths ...string) ([]Object, []error) {
	s := scan{dir: d, watch: func(string) {}, visited: map[string]bool{}}
	for _, path := range paths {
		switch info, err := os.Stat(path); {
		case err != nil:
			s.lose(path, err)
		case info.IsDir():
			s.walk(path)
		default:
			s.read(path, info.Size())
		}
	}
	objects, errs := s.merge(nil)
	return sorted(objects), errs
}

// Run reads the tree, calls changed, and calls it again whenever the objects
// or the errors differ from those of the call before, until the context ends;
// it returns the context's error. An object whose document is broken or
// unreadable stays as it last was; one whose document is gone, goes.
func (d *Dir) Run(ctx context.Context, changed func([]Object, []error)) error {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w (is fs.inotify.max_user_instances used up?)", d.Path, err)
	}
	defer notify.Close()
	w := watch{dir: d, notify: notify}
	w.rescan(w.follow)
	changed(sorted(w.objects), w.errs)
	for {
		if err := w.wait(ctx); err != nil {
			return err
		}
		if w.rescan(w.follow) {
			changed(sorted(w.objects), w.errs)
		}
	}
}

// watch is what is known of a tree from one reading to the next.
type watch struct {
	dir     *Dir
	notify  *fsnotify.Watcher
	root    string          // absolute
	wanted  map[string]bool // directories that the last reading met; false: only for the root in it
	files   map[string]*file
	objects map[Key]Object
	errs    []error
}

// rescan reads the tree and reports whether anything is different.
func (w *watch) rescan(follow func(string)) bool {
	w.wanted = map[string]bool{}
	s := scan{dir: w.dir, before: w.files, holds: map[string]bool{}, watch: follow, visited: map[string]bool{}}
	for _, o := range w.objects {
		s.holds[o.File] = true
	}
	w.followRoot()
	s.walk(filepath.Clean(w.dir.Path))
	w.unfollow()
	objects, errs := s.merge(w.objects)
	different := !equal(w.objects, objects) || !slices.EqualFunc(w.errs, errs, sameText)
	w.objects, w.errs = objects, errs
	w.files = map[string]*file{}
	for _, f := range s.files {
		w.files[f.path] = f
	}
	return different
}

// followRoot watches the directory that holds the root: there the root's
// making shows, and its swap where it is a link.
func (w *watch) followRoot() {
	root, err := filepath.Abs(w.dir.Path)
	if err != nil || w.notify == nil {
		return
	}
	w.root = root
	w.wanted[filepath.Dir(root)] = false
	_ = w.notify.Add(filepath.Dir(root))
}

// follow watches a directory. That one cannot be watched is no error: the
// resync reads it.
func (w *watch) follow(path string) {
	w.wanted[path] = true
	_ = w.notify.Add(path)
}

func (w *watch) unfollow() {
	if w.notify == nil {
		return
	}
	for _, path := range w.notify.WatchList() {
		if _, wanted := w.wanted[path]; !wanted {
			_ = w.notify.Remove(path)
		}
	}
}

// wait returns once the tree may have changed.
func (w *watch) wait(ctx context.Context) error {
	again := time.NewTimer(resync)
	defer again.Stop()
	var calm, late <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
			return nil
		case <-calm:
			return nil
		case <-late:
			return nil
		case <-w.notify.Errors: //nolint:errcheck // such as an overflow: events were lost
		case event := <-w.notify.Events:
			if event.Op == fsnotify.Chmod || !w.wanted[filepath.Dir(event.Name)] && event.Name != w.root {
				continue
			}
		}
		calm = time.After(quiet)
		if late == nil {
			late = time.After(patience)
		}
	}
}

func equal(a, b map[Key]Object) bool {
	if len(a) != len(b) {
		return false
	}
	for key, o := range a {
		if other, ok := b[key]; !ok || other.Value != o.Value {
			return false
		}
	}
	return true
}

func sameText(a, b error) bool { return a.Error() == b.Error() }
