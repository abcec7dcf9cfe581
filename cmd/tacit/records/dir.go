package records

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/xds/source/files"
)

// Dir is the directory of manifests that a tacitd reads. Each record is a file
// of its own there.
type Dir[T any] struct {
	Path string
	Kind Kind[T]
}

// List implements [Store].
func (d Dir[T]) List(context.Context) ([]*T, error) {
	objects, errs := files.Read(d.Path)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("read the manifests: %w", err)
	}
	return d.Kind.Of(objects), nil
}

// Create implements [Store].
func (d Dir[T]) Create(_ context.Context, r *T) error {
	if _, err := os.Stat(d.file(r)); err == nil {
		return fmt.Errorf("%s is there already", d.file(r))
	}
	return d.write(r)
}

// Update implements [Store].
func (d Dir[T]) Update(_ context.Context, r *T) error {
	if _, err := os.Stat(d.file(r)); err != nil {
		return fmt.Errorf("%s %s/%s was not written by this command: change it in its own manifest", d.Kind.Kind, d.Kind.Object(r).GetNamespace(), d.Kind.Object(r).GetName())
	}
	return d.write(r)
}

func (d Dir[T]) file(r *T) string {
	return filepath.Join(d.Path, d.Kind.Object(r).GetName()+".yaml")
}

// write replaces the file at once; tacitd sees the old one or the new one.
func (d Dir[T]) write(r *T) error {
	*d.Kind.Type(r) = metav1.TypeMeta{APIVersion: d.Kind.APIVersion, Kind: d.Kind.Kind}
	text, err := yaml.Marshal(r)
	if err != nil {
		return fmt.Errorf("write %s: %w", d.file(r), err)
	}
	f, err := os.CreateTemp(d.Path, "."+d.Kind.Object(r).GetName()+".*")
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
func (d Dir[T]) Who(context.Context) (string, error) {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name, nil
	}
	u, err := user.Current()
	if err != nil {
		return "", fmt.Errorf("who you are: %w", err)
	}
	return u.Username, nil
}
