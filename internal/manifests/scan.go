package manifests

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxFile bounds a file, in bytes.
const maxFile = 16 << 20

// file is what one file says.
type file struct {
	path    string
	sum     [sha256.Size]byte
	objects []Object
	// failed are objects that are in the file but did not decode.
	failed []Key
	// opaque says that not even the names of all its objects are known.
	opaque bool
	errs   []error
}

// scan is one walk over a directory tree.
type scan struct {
	dir     *Dir
	before  map[string]*file // of the walk before, to parse only what changed
	holds   map[string]bool  // files with objects in force
	watch   func(path string)
	visited map[string]bool

	files []*file // in the order of the walk
	lost  []string
	errs  []error
}

// walk reads a directory and those below it, following links. Each directory
// is watched before it is read, so that no change falls in between.
func (s *scan) walk(path string) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		s.lose(path, err)
		return
	}
	if s.visited[resolved] {
		return
	}
	s.visited[resolved] = true
	s.watch(resolved)
	entries, err := os.ReadDir(resolved)
	if err != nil {
		s.lose(path, err)
		return
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".") { // "..data" of a mounted ConfigMap among them
			s.entry(filepath.Join(path, entry.Name()), filepath.Join(resolved, entry.Name()), entry)
		}
	}
}

func (s *scan) entry(path, resolved string, entry fs.DirEntry) {
	manifest := isManifest(path)
	info, err := os.Stat(resolved)
	switch {
	case errors.Is(err, fs.ErrNotExist) && entry.Type()&fs.ModeSymlink == 0:
		return // gone since the directory was read
	case err != nil && (manifest || entry.Type()&fs.ModeSymlink != 0):
		s.lose(path, err)
	case err != nil:
		return
	case info.IsDir():
		s.walk(path)
	case manifest && info.Mode().IsRegular():
		if target, err := filepath.EvalSymlinks(resolved); err == nil && target != resolved {
			s.watch(filepath.Dir(target))
		}
		s.read(path, info.Size())
	}
}

func isManifest(path string) bool {
	switch filepath.Ext(path) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// lose notes that what is at and below a path cannot be known now.
func (s *scan) lose(path string, err error) {
	s.lost = append(s.lost, path)
	s.errs = append(s.errs, &Error{File: path, Err: fmt.Errorf("cannot be read: %w", err)})
}

func (s *scan) read(path string, size int64) {
	if size > maxFile {
		s.lose(path, fmt.Errorf("%d bytes, the limit is %d", size, maxFile))
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		s.lose(path, err)
		return
	}
	if len(data) == 0 {
		// Editors and full disks leave empty files behind; nobody removes
		// a policy that way.
		if s.holds[path] {
			s.lose(path, errors.New("empty; delete the file to delete its objects"))
		}
		return
	}
	f, sum := s.before[path], sha256.Sum256(data)
	if f == nil || f.sum != sum {
		f = s.dir.parse(path, data)
		f.sum = sum
	}
	s.files = append(s.files, f)
}

// parse reads the documents of a file. Each of its errors is an [*Error].
func (d *Dir) parse(path string, data []byte) *file {
	f := &file{path: path}
	for _, c := range split(data) {
		docs, err := c.parse(path)
		if err != nil {
			f.opaque = true
			f.errs = append(f.errs, flatten(err)...)
		}
		for _, doc := range docs {
			d.decode(f, doc)
		}
	}
	return f
}

func (d *Dir) decode(f *file, doc *Document) {
	kind, err := d.kind(doc)
	if err != nil {
		f.errs = append(f.errs, flatten(err)...)
		return
	}
	if kind == nil {
		return
	}
	group, _, found := strings.Cut(doc.APIVersion, "/")
	if !found {
		group = ""
	}
	key := Key{Group: group, Kind: doc.Kind, Namespace: doc.Namespace, Name: doc.Name}
	switch {
	case kind.Cluster:
		key.Namespace = ""
	case key.Namespace == "":
		key.Namespace = "default"
	}
	value, err := kind.Decode(doc)
	if err != nil {
		f.failed = append(f.failed, key)
		f.errs = append(f.errs, flatten(err)...)
		return
	}
	f.objects = append(f.objects, Object{Key: key, File: doc.File, Line: doc.Line, Value: value})
}

// kind finds what to decode a document as; nil if the caller has no use for it.
func (d *Dir) kind(doc *Document) (*Kind, error) {
	for i := range d.Kinds {
		if d.Kinds[i].Kind != doc.Kind {
			continue
		}
		for _, version := range d.Kinds[i].APIVersions {
			if version == doc.APIVersion {
				return &d.Kinds[i], nil
			}
		}
	}
	if d.Ignore != nil && d.Ignore(doc.APIVersion, doc.Kind) {
		return nil, nil
	}
	return nil, doc.fail("kind", doc.node, fmt.Errorf("%s of %s is not a kind that is read here", doc.Kind, doc.APIVersion))
}

// flatten undoes errors.Join.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}
