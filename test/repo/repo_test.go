// Package repo tests what holds for the whole repository: who may import
// whom, that each package says what it is for, and formatting. What does not
// belong here: anything that a linter with a setting can check.
package repo

import (
	"bytes"
	"errors"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/tacit-mesh/tacit"

// top is the repository's own directory.
func top(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// goFiles calls visit with each Go file, by its path below top.
func goFiles(t *testing.T, visit func(path string, data []byte)) {
	t.Helper()
	root := top(t)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := e.Name(); e.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			rel, _ := filepath.Rel(root, path)
			visit(rel, data)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFormatted(t *testing.T) {
	goFiles(t, func(path string, data []byte) {
		if out, err := format.Source(data); err != nil {
			t.Errorf("%s: %v", path, err)
		} else if !bytes.Equal(out, data) {
			t.Errorf("%s: run gofmt -w on it", path)
		}
	})
}

// Every package has one doc, at one place: what it is for, and what is not its
// business.
func TestPackageDocs(t *testing.T) {
	docs := map[string][]string{} // by directory: the texts
	names := map[string]string{}
	files := token.NewFileSet()
	goFiles(t, func(path string, data []byte) {
		f, err := parser.ParseFile(files, path, data, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Error(err)
			return
		}
		dir := filepath.Dir(path)
		if name := f.Name.Name; !strings.HasSuffix(name, "_test") {
			names[dir] = name
		}
		docs[dir] = append(docs[dir], docOf(f)...)
	})
	for dir, name := range names {
		switch texts := docs[dir]; {
		case len(texts) == 0:
			t.Errorf("%s: no package doc: say what the package is for and what does not belong in it", dir)
		case len(texts) > 1:
			t.Errorf("%s: %d package docs, want one:\n%s", dir, len(texts), strings.Join(texts, "\n---\n"))
		case !strings.HasPrefix(texts[0], wantedBeginning(dir, name)):
			t.Errorf("%s: the package doc must begin with %q", dir, wantedBeginning(dir, name))
		}
	}
}

func docOf(f *ast.File) []string {
	if f.Doc == nil || ast.IsGenerated(f) && !strings.Contains(f.Doc.Text(), "Package ") {
		return nil
	}
	if text := f.Doc.Text(); text != "" {
		return []string{text}
	}
	return nil // a build constraint
}

func wantedBeginning(dir, name string) string {
	if name == "main" {
		return "Command " + filepath.Base(dir) + " "
	}
	return "Package " + name + " "
}
