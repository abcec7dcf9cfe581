package revoked

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"

	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/source/files"
)

// Dir is the directory of manifests that a tacitd reads. Each record is a file
// of its own there.
type Dir struct {
	Path string
	// Namespace is the root namespace of the mesh.
	Namespace string
}

// List implements [Store].
func (d Dir) List(context.Context) ([]*kinds.RevokedIdentity, error) {
	objects, errs := files.Read(d.Path)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("read the manifests: %w", err)
	}
	return objects.RevokedIdentities, nil
}

// Create implements [Store].
func (d Dir) Create(_ context.Context, r *kinds.RevokedIdentity) error {
	r.Namespace = d.Namespace
	if _, err := os.Stat(d.file(r)); err == nil {
		return fmt.Errorf("%s is there already", d.file(r))
	}
	return d.write(r)
}

// Update implements [Store].
func (d Dir) Update(_ context.Context, r *kinds.RevokedIdentity) error {
	if _, err := os.Stat(d.file(r)); err != nil {
		return fmt.Errorf("RevokedIdentity %s/%s was not written by this command: take it out of its own manifest", r.Namespace, r.Name)
	}
	return d.write(r)
}

func (d Dir) file(r *kinds.RevokedIdentity) string {
	return filepath.Join(d.Path, r.Name+".yaml")
}

// write replaces the file at once; tacitd sees the old one or the new one.
func (d Dir) write(r *kinds.RevokedIdentity) error {
	r.APIVersion, r.Kind = kinds.RevokedIdentityVersion, "RevokedIdentity"
	text, err := yaml.Marshal(r)
	if err != nil {
		return fmt.Errorf("write %s: %w", d.file(r), err)
	}
	f, err := os.CreateTemp(d.Path, "."+r.Name+".*")
	if err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), d.file(r))
	}
	if err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	return nil
}

// Who implements [Store]: the user of this machine, behind sudo if need be.
func (d Dir) Who(context.Context) (string, error) {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name, nil
	}
	u, err := user.Current()
	if err != nil {
		return "", fmt.Errorf("who is revoking: %w", err)
	}
	return u.Username, nil
}
