// Package servers builds and runs programs of others that Tacit works with,
// the real ones, for tests.
//
// Each is a module of its own below this directory, whose go.mod says of what
// versions the program is made; around a library there is a main package. What
// does not belong here: what is expected of them (the tests).
package servers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/tacit-mesh/tacit/test/servers/cache"
)

// What is built of each module.
var programs = map[string]struct {
	packages map[string]string // by program
	cgo      string
}{
	"spire": {map[string]string{
		"spire-server": "github.com/spiffe/spire/cmd/spire-server",
		"spire-agent":  "github.com/spiffe/spire/cmd/spire-agent",
	}, "1"}, // for SQLite
	"istiod": {map[string]string{
		"istiod":   "istio.io/istio/pilot/cmd/pilot-discovery",
		"istioctl": "./istioctl",
		// The agent of its CNI plugin, and that.
		"install-cni": "istio.io/istio/cni/cmd/install-cni",
		"istio-cni":   "istio.io/istio/cni/cmd/istio-cni",
	}, "0"},
	"hbone": {map[string]string{"hbone": "."}, "0"}, // Istio's own, of the same version
}

// Build builds the programs of a module, once for each version of it, which
// takes minutes, and returns their directory. What the compiler says goes to
// progress.
func Build(ctx context.Context, module string, progress io.Writer) (string, error) {
	what, ok := programs[module]
	if !ok {
		return "", fmt.Errorf("build %s: no such module", module)
	}
	source, err := sources(ctx, module)
	if err != nil {
		return "", err
	}
	name, err := directory(module, source)
	if err != nil {
		return "", err
	}
	dir, release, err := cache.Open(name)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", module, err)
	}
	defer release()
	for program, pkg := range what.packages {
		path := filepath.Join(dir, program)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := compile(ctx, source, pkg, path, what.cgo, progress); err != nil {
			return "", fmt.Errorf("build %s: %w", program, err)
		}
	}
	return dir, nil
}

// Source is the directory of a module that programs of another are made of, such
// as its charts.
func Source(ctx context.Context, module, of string) (string, error) {
	source, err := sources(ctx, module)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", of)
	cmd.Dir, cmd.Env = source, buildEnvironment()
	var found struct{ Dir, Error string }
	said, err := cmd.Output()
	if decodeErr := json.Unmarshal(said, &found); decodeErr != nil || found.Error != "" {
		return "", fmt.Errorf("go mod download %s: %w %s", of, errors.Join(err, decodeErr), found.Error)
	}
	return found.Dir, nil
}

// sources is where a module is.
func sources(ctx context.Context, module string) (string, error) {
	top, err := top(ctx)
	return filepath.Join(top, "test", "servers", module), err
}

// top is the directory of Tacit's own module.
func top(ctx context.Context) (string, error) {
	said, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	return strings.TrimSpace(string(said)), nil
}

// directory has in its name what the module says.
func directory(module, source string) (string, error) {
	hash := sha256.New()
	var files []string
	for _, pattern := range []string{"go.mod", "go.sum", "*.go", "*/*.go"} {
		found, err := filepath.Glob(filepath.Join(source, pattern))
		if err != nil {
			return "", err
		}
		files = append(files, found...)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		hash.Write(text)
	}
	return fmt.Sprintf("%s-%x", module, hash.Sum(nil)[:6]), nil
}

// buildEnvironment has go keep to the module's own files.
func buildEnvironment() []string { return append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off") }

func compile(ctx context.Context, source, pkg, path, cgo string, progress io.Writer) error {
	var said bytes.Buffer
	fresh := path + ".new"
	// Behind whatever else the machine has to do.
	cmd := exec.CommandContext(ctx, "nice", "go", "build", "-v", "-trimpath", "-ldflags=-s -w", "-o", fresh, pkg)
	cmd.Dir, cmd.Env = source, append(buildEnvironment(), "CGO_ENABLED="+cgo)
	cmd.Stdout, cmd.Stderr = progress, io.MultiWriter(progress, &said)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, said.Bytes()[max(0, said.Len()-4000):])
	}
	return os.Rename(fresh, path)
}
