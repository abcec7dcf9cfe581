package main

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
)

// Why the file of --root cannot be read is said each time that there is another
// reason, and not each time that it is read.
func TestRootsThatCannotBeRead(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	file := filepath.Join(t.TempDir(), "root.pem")
	p := &process{options: options{root: file}, log: zap.New(core), store: identity.NewStore(nil)}
	write := func(text []byte) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for n, step := range []struct {
		do    func()
		roots int
		lines int // of the log, by then
	}{
		{func() {}, 0, 1},
		{func() {}, 0, 1},
		{func() { write([]byte("noise")) }, 0, 2},
		{func() {
			write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: identitytest.NewCA(t).Root.Raw}))
		}, 1, 2},
		{func() { write([]byte("noise")) }, 0, 3},
	} {
		step.do()
		if sets := p.judges(); len(sets) != 1 || len(sets[0]) != step.roots || logs.Len() != step.lines {
			t.Errorf("step %d: sets %d, the first of %d roots, %d lines; want %d roots and %d lines", n, len(sets), len(sets[0]), logs.Len(), step.roots, step.lines)
		}
	}
}
