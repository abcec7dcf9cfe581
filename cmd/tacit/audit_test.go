package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/internal/audit"
)

func TestAuditVerify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := audit.Open(audit.Config{Path: path, Program: "test", Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	l.Write(audit.EventDenied, map[string]string{"policy": "shop/nobody"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = l.Run(ctx)
	call := func(args ...string) (int, string, string) {
		var out, errOut bytes.Buffer
		code := run(t.Context(), "tacit", append([]string{"audit", "verify"}, args...), &out, &errOut)
		return code, out.String(), errOut.String()
	}
	code, out, errOut := call(path)
	if code != 0 || !strings.Contains(out, "2 records, 1 to 2, ") {
		t.Fatalf("%d: %s%s", code, out, errOut)
	}
	_, hash, _ := strings.Cut(strings.TrimSpace(out), "hash of the last: ")
	if code, out, errOut = call(path, "--expect", hash); code != 0 {
		t.Errorf("with its own hash: %d: %s%s", code, out, errOut)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		text []byte
		want string
	}{
		"changed": {bytes.Replace(text, []byte("nobody"), []byte("nobodx"), 1), ":2: record 2 does not have the hash"},
		"cut off": {text[:bytes.IndexByte(text, '\n')+1], "no record has the hash " + hash},
		"nothing": {nil, "no record in"},
	} {
		if err := os.WriteFile(path, test.text, 0o600); err != nil {
			t.Fatal(err)
		}
		if code, out, errOut := call(path, "--expect", hash); code != 1 || !strings.Contains(errOut, test.want) {
			t.Errorf("%s: %d: %s%s, want %q", name, code, out, errOut, test.want)
		}
	}
}
