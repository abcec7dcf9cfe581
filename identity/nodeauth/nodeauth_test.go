package nodeauth

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

const (
	tokenA = "aaaaaaaaaaaaaaaaaaaaaaaa"
	tokenB = "bbbbbbbbbbbbbbbbbbbbbbbb"
)

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestAuthenticate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	write(t, path, "# nodes\n\n"+tokenA+" node-a\n"+tokenB+"\tnode-b\n", 0o600)
	f, err := OpenTokenFile(path, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		header metadata.MD
		node   string
	}{
		{"one node", metadata.Pairs("authorization", "Bearer "+tokenA), "node-a"},
		{"another, in lower case", metadata.Pairs("authorization", "bearer "+tokenB), "node-b"},
		{"none", nil, ""},
		{"two", metadata.Pairs("authorization", "Bearer "+tokenA, "authorization", "Bearer "+tokenB), ""},
		{"no scheme", metadata.Pairs("authorization", tokenA), ""},
		{"another scheme", metadata.Pairs("authorization", "Basic "+tokenA), ""},
		{"unknown", metadata.Pairs("authorization", "Bearer "+tokenA+"a"), ""},
		{"empty", metadata.Pairs("authorization", "Bearer "), ""},
		{"a comment", metadata.Pairs("authorization", "Bearer #"), ""},
		{"too long", metadata.Pairs("authorization", "Bearer "+strings.Repeat("a", maxToken+1)), ""},
	} {
		ctx, err := f.Tap(t.Context(), &tap.Info{Header: test.header})
		switch {
		case test.node == "" && status.Code(err) != codes.Unauthenticated:
			t.Errorf("%s: got %v, want Unauthenticated", test.name, err)
		case test.node != "" && (err != nil || Node(ctx) != test.node):
			t.Errorf("%s: got %v, want node %s", test.name, err, test.node)
		}
	}
	if got := Node(t.Context()); got != "" {
		t.Errorf("a context that was never here has the node %q", got)
	}
}

func TestFileChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	write(t, path, tokenA+" node-a\n", 0o600)
	f, err := OpenTokenFile(path, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	code := func(token string) codes.Code {
		_, err := f.authenticate(metadata.Pairs("authorization", "Bearer "+token))
		return status.Code(err)
	}
	for _, step := range []struct {
		name   string
		change func()
		a, b   codes.Code
	}{
		{"as opened", func() {}, codes.OK, codes.Unauthenticated},
		{"another token", func() { write(t, path, tokenB+" node-b\n", 0o600) }, codes.Unauthenticated, codes.OK},
		{"others may read it", func() { _ = os.Chmod(path, 0o604) }, codes.Unavailable, codes.Unavailable},
		{"mended", func() { _ = os.Chmod(path, 0o600) }, codes.Unauthenticated, codes.OK},
		{"broken", func() { write(t, path, tokenB+"\n", 0o600) }, codes.Unavailable, codes.Unavailable},
		{"both", func() { write(t, path, tokenA+" node-a\n"+tokenB+" node-b\n", 0o600) }, codes.OK, codes.OK},
		{"gone", func() { _ = os.Remove(path) }, codes.Unavailable, codes.Unavailable},
		{"back", func() { write(t, path, tokenA+" node-a\n", 0o600) }, codes.OK, codes.Unauthenticated},
	} {
		step.change()
		if a, b := code(tokenA), code(tokenB); a != step.a || b != step.b {
			t.Errorf("%s: got %v and %v, want %v and %v", step.name, a, b, step.a, step.b)
		}
	}
}

func TestBadFiles(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"empty", "\n# nothing\n", "no tokens"},
		{"token alone", tokenA + " node-a\n" + tokenB, "line 2: want TOKEN NODE"},
		{"three words", tokenA + " node a", "line 1: want TOKEN NODE"},
		{"short token", "secret node-a", "line 1: want TOKEN NODE"},
		{"twice", tokenA + " node-a\n" + tokenA + " node-b\n", "line 2: the same token twice"},
	} {
		path := filepath.Join(t.TempDir(), "tokens")
		write(t, path, test.text, 0o600)
		_, err := OpenTokenFile(path, zap.NewNop())
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), tokenA) {
			t.Errorf("%s: the error shows a token", test.name)
		}
	}
}
