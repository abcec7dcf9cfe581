package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/tacit-mesh/tacit/deploy/images"
)

// Namespace is where Tacit is.
const Namespace = "tacit-system"

// NextDirectory is where, in the directory of Tacit's programs, those are of a
// version to come.
const NextDirectory = "next"

// PublishTacit makes Tacit's images available to the nodes, under a tag, with
// the programs of a directory, and those of this version that it lacks. The
// lists of what is in them are those of the Dockerfile's stages; what that
// takes from Debian is taken from this machine.
func (c *Cluster) PublishTacit(ctx context.Context, tag, programs string) error {
	userland, remove, err := copyUserland(ctx)
	if err != nil {
		return err
	}
	defer remove()
	var all []image
	for _, wanted := range images.All() {
		var files []file
		if wanted.Userland {
			files = append(files, file{userland, "/"})
		}
		for _, p := range wanted.Programs {
			from := filepath.Join(programs, p.Tags, path.Base(p.Package))
			if _, err := os.Stat(from); err != nil {
				from = filepath.Join(c.programs, p.Tags, path.Base(p.Package))
			}
			files = append(files, file{from, p.Path})
		}
		made, err := c.newImage(wanted.Name, tag, v1.Config{User: wanted.User, Entrypoint: []string{wanted.Entrypoint}}, files)
		if err != nil {
			return err
		}
		all = append(all, made)
	}
	return c.publish(ctx, all...)
}

// copyUserland makes a directory of what images have beside programs of their own.
func copyUserland(ctx context.Context) (dir string, remove func(), err error) {
	if dir, err = os.MkdirTemp("", "tacit-userland-"); err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	if out, err := exec.CommandContext(ctx, "sh", filepath.Join(repository, images.UserlandScript), dir).CombinedOutput(); err != nil {
		remove()
		return "", nil, fmt.Errorf("%s: %w: %s", images.UserlandScript, err, out)
	}
	return dir, remove, nil
}

// repository is where tests of this package run, seen from its top.
const repository = "../.."

// Tacit runs the command tacit against the cluster and returns what it prints.
func (c *Cluster) Tacit(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.programs, "tacit"), append(args, "--kubeconfig="+c.Kubeconfig)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("tacit %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// TacitLogs is how the logs of Tacit's pods end, those of earlier containers
// included, for tests that have failed.
func (c *Cluster) TacitLogs(ctx context.Context) string {
	out, err := c.podLogs(ctx, Namespace)
	if err != nil {
		out += err.Error()
	}
	return out
}

// InstallTacit installs images of a tag, with further values of the chart.
func (c *Cluster) InstallTacit(ctx context.Context, verb, tag string, values ...string) error {
	args := []string{verb, "--timeout=2m", "--set=image.registry=" + c.Registry(), "--set=image.tag=" + tag}
	for _, value := range values {
		args = append(args, "--set="+value)
	}
	out, err := c.Tacit(ctx, args...)
	if err != nil {
		return errors.Join(err, errors.New(out), errors.New(c.TacitLogs(ctx)))
	}
	return nil
}
