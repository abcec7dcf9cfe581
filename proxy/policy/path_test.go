package policy

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tacit-mesh/tacit/xds/model"
)

// The examples of Istio's page on normalization, and what goes beyond it.
func TestNormalizePath(t *testing.T) {
	const refused = "refused"
	for _, test := range []struct{ path, base, merge, decode string }{
		{"/", "/", "/", "/"},
		{"/a/b", "/a/b", "/a/b", "/a/b"},
		{"*", "*", "*", "*"},
		{"/some%2fdata/%61%62%63", "/some%2fdata/abc", "/some%2fdata/abc", "/some/data/abc"},
		{`/some\data`, "/some/data", "/some/data", "/some/data"},
		{"/some//data///abc", "/some//data///abc", "/some/data/abc", "/some/data/abc"},
		{"/public/./data/abc/../xyz", "/public/data/xyz", "/public/data/xyz", "/public/data/xyz"},
		{"/a/../b", "/b", "/b", "/b"},
		{`\da`, "/da", "/da", "/da"},
		{"/a/%2e%2E/b", "/b", "/b", "/b"},
		{"/a/%2E", "/a/", "/a/", "/a/"},
		{"/a/..", "/", "/", "/"},
		{"/../../a", "/a", "/a", "/a"},
		{"/a/..%2fb", "/a/..%2fb", "/a/..%2fb", "/b"},
		{"/a%5cb%5Cc", "/a%5cb%5Cc", "/a%5cb%5Cc", "/a/b/c"},
		{"/a%2f%2fb", "/a%2f%2fb", "/a%2f%2fb", "/a/b"},
		{"/a//../b", "/a/b", "/a/b", "/a/b"},
		{"/%2D%30%39%41%5A%5f%61%7a%7E", "/-09AZ_az~", "/-09AZ_az~", "/-09AZ_az~"},
		{"/%252e%252e/", "/%252e%252e/", "/%252e%252e/", "/%252e%252e/"},
		{"/.a/..b/...", "/.a/..b/...", "/.a/..b/...", "/.a/..b/..."},
		{"/a;b=c/@:!$&'()*+,=[]|{}", "/a;b=c/@:!$&'()*+,=[]|{}", "/a;b=c/@:!$&'()*+,=[]|{}", "/a;b=c/@:!$&'()*+,=[]|{}"},
		{"/\xc3\xbc\"<>`", "/%C3%BC%22%3C%3E%60", "/%C3%BC%22%3C%3E%60", "/%C3%BC%22%3C%3E%60"},
		{"/%00", refused, refused, refused},
		{"/%", refused, refused, refused},
		{"/%%32e/", refused, refused, refused},
		{"/%g0", refused, refused, refused},
		{"/a b", refused, refused, refused},
		{"/a\x7f", refused, refused, refused},
		{"/a#b", refused, refused, refused},
		{"a", refused, refused, refused},
		{"", refused, refused, refused},
	} {
		for mode, want := range map[model.PathNormalization]string{
			model.NormalizeBase: test.base, model.NormalizeMergeSlashes: test.merge, model.NormalizeDecodeAndMergeSlashes: test.decode,
		} {
			got, err := NormalizePath(mode, test.path)
			if err != nil {
				got = refused
			}
			if got != want {
				t.Errorf("mode %d: %q becomes %q, want %q", mode, test.path, got, want)
			}
		}
	}
	for path, want := range map[string]string{"/a/../b//%2f": "/a/../b//%2f", `\a`: refused, "/%00": refused} {
		got, err := NormalizePath(model.NormalizeNone, path)
		if err != nil {
			got = refused
		}
		if got != want {
			t.Errorf("no normalization: %q becomes %q, want %q", path, got, want)
		}
	}
}

// FuzzNormalizePath: a path in its normal form stays as it is, and is never one
// that an origin would take for another.
func FuzzNormalizePath(f *testing.F) {
	for _, path := range []string{"/a/../b", "/%2e%2e/", `/a\..\b`, "//", "/a%2f..", "/.", "/%c3"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		for mode := model.NormalizeBase; mode <= model.NormalizeDecodeAndMergeSlashes; mode++ {
			once, err := NormalizePath(mode, path)
			if err != nil || once == "*" {
				continue
			}
			twice, err := NormalizePath(mode, once)
			if err != nil || twice != once {
				t.Fatalf("mode %d: %q becomes %q, and that %q, %v", mode, path, once, twice, err)
			}
			if !strings.HasPrefix(once, "/") || strings.ContainsAny(once, "\\ #\x00") {
				t.Fatalf("mode %d: %q becomes %q", mode, path, once)
			}
			lower := strings.ToLower(once)
			for segment := range strings.SplitSeq(lower, "/") {
				if segment == "." || segment == ".." || strings.Contains(segment, "%2e") {
					t.Fatalf("mode %d: %q becomes %q", mode, path, once)
				}
			}
			if mode != model.NormalizeBase && strings.Contains(once, "//") || mode == model.NormalizeDecodeAndMergeSlashes && (strings.Contains(lower, "%2f") || strings.Contains(lower, "%5c")) {
				t.Fatalf("mode %d: %q becomes %q", mode, path, once)
			}
		}
	})
}

// FuzzTemplate: what is accepted as a template matches as the reference says.
func FuzzTemplate(f *testing.F) {
	f.Add("/foo/{*}", "/foo/bar")
	f.Add("/foo/{**}/", "/foo//")
	f.Add("/foo/{*}/bar/{**}", "/foo/buzz/bar/baz")
	f.Add("/{**}/a", "/b/a")
	f.Fuzz(func(t *testing.T, template, path string) {
		m, err := model.ParsePathMatch(template)
		if err != nil || !utf8.ValidString(template) || !utf8.ValidString(path) || strings.Contains(path, "\n") {
			return
		}
		if got, want := m.Matches(path), refText(m, path); got != want {
			t.Fatalf("%q and %q: %v, the reference says %v", template, path, got, want)
		}
	})
}
