package cli

import (
	"fmt"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/internal/audit"
)

// Audit is where a program keeps its audit log.
type Audit struct {
	path       string
	size, keep int
}

// Flags adds --audit and how much of it is kept.
func (a *Audit) Flags(f *pflag.FlagSet) {
	f.StringVar(&a.path, "audit", "", "`file` to keep denials, bypasses and what becomes of identities in, chained by hashes (tacit audit verify); none if empty")
	f.IntVar(&a.size, "audit-size", audit.DefaultMaxSize>>20, "`MiB` after which the file is closed and another begun")
	f.IntVar(&a.keep, "audit-keep", audit.DefaultKeep, "`number` of closed files to keep, the youngest as FILE.1")
}

// Check is an error if there is something wrong with the flags.
func (a *Audit) Check() error {
	if a.size < 1 || a.keep < 1 {
		return fmt.Errorf("--audit-size=%d, --audit-keep=%d: want 1 or more of both", a.size, a.keep)
	}
	return nil
}

// Open is nil if no audit log is wanted, in a file or by export, which may be nil.
func (a *Audit) Open(program, node string, export func(audit.Record, []byte), log *zap.Logger) (*audit.Log, error) {
	if a.path == "" && export == nil {
		return nil, nil
	}
	return audit.Open(audit.Config{
		Path: a.path, MaxSize: int64(a.size) << 20, Keep: a.keep, Program: program, Node: node, Export: export, Log: log,
	})
}
