// Package audittest reads back what a test has written to an audit log.
package audittest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/internal/audit"
)

// New is a log, and what ends it and gives its records but for the first, which
// says that it began.
func New(t testing.TB) (l *audit.Log, records func() []audit.Record) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := audit.Open(audit.Config{Path: path, Program: "test", Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	return l, func() []audit.Record {
		t.Helper()
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if err := l.Run(ended); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var all []audit.Record
		for in := bufio.NewScanner(f); in.Scan(); {
			var r audit.Record
			if err := json.Unmarshal(in.Bytes(), &r); err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
		}
		return all[1:]
	}
}
