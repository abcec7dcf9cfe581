package ca

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// The files of a directory. Either ca.key and ca.crt, which tacitd makes and
// rotates; or, in the layout that Kubernetes and cert-manager give
// certificates, tls.key, tls.crt and ca.crt, which it only reads.
const (
	keyFile  = "ca.key"
	rootFile = "ca.crt"

	foreignKeyFile   = "tls.key"
	foreignChainFile = "tls.crt"

	rotationFile = "rotation.json" // the truth while a rotation is under way: it holds keys
	requestFile  = "rotate.request"
	statusFile   = "status.json"

	maxFile = 1 << 20 // bytes, as of a Secret
)

// Dir is a [Store] in a directory.
type Dir struct {
	path string
	// behind says that what people know is not in line with the state that
	// was saved last.
	behind bool
}

// OpenDir opens a directory: ca.key, a private key in PKCS #8, with mode 0600,
// and ca.crt, its certificate, after which intermediates and roots may follow.
// What is missing is made: a P-256 key, and a root that signs itself and names
// trustDomain. What is there is written over by rotations alone.
//
// If there is a tls.key, then tls.key, tls.crt and ca.crt are read instead, as
// from a mounted Secret, and never written.
func OpenDir(path, trustDomain string) (*Dir, error) {
	d := &Dir{path: path}
	if err := d.create(trustDomain); err != nil {
		return nil, fmt.Errorf("open certificate authority in %s: %w", path, err)
	}
	return d, nil
}

// Open is OpenDir and New together, for who follows nothing.
func Open(path, trustDomain string) (*Authority, error) {
	d, err := OpenDir(path, trustDomain)
	if err != nil {
		return nil, err
	}
	return New(context.Background(), d, Config{TrustDomain: trustDomain})
}

func (d *Dir) file(name string) string { return filepath.Join(d.path, name) }

func (d *Dir) has(name string) bool {
	_, err := os.Lstat(d.file(name))
	return err == nil
}

func (d *Dir) foreign() bool { return d.has(foreignKeyFile) || d.has(foreignChainFile) }

// create makes what is missing, and finishes what a process before this one
// was writing when it ended.
func (d *Dir) create(trustDomain string) error {
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return err
	}
	if d.foreign() {
		return nil
	}
	if d.has(rotationFile) {
		state, err := d.load()
		if err == nil && state.Rotation.Active() {
			err = d.align(state)
		}
		return err
	}
	if !d.has(keyFile) && d.has(rootFile) {
		return fmt.Errorf("%s is there without its %s: bring the key back, or move the certificate away to start anew", rootFile, keyFile)
	}
	if !d.has(keyFile) {
		if err := createOnce(d.file(keyFile), 0o600, newKey); err != nil {
			return err
		}
	}
	if d.has(rootFile) {
		return nil
	}
	text, err := d.readKey(keyFile, ownerOnly) // another process may have been first
	if err != nil {
		return err
	}
	key, err := parseKey(text)
	if err != nil {
		return fmt.Errorf("%s: %w", keyFile, err)
	}
	return createOnce(d.file(rootFile), 0o644, func() ([]byte, error) { return newRoot(key, trustDomain, time.Now()) })
}

// Load implements Store.
func (d *Dir) Load(context.Context) (*State, error) {
	state, err := d.load()
	if err == nil && d.behind {
		if err = d.align(state); err == nil {
			d.behind = false
		}
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority in %s: %w", d.path, err)
	}
	return state, nil
}

// Permissions that a key must not have. A mounted Secret belongs to root and
// the group of the pod that it is for.
const (
	ownerOnly     fs.FileMode = 0o077
	ownerAndGroup fs.FileMode = 0o037
)

func (d *Dir) load() (*State, error) {
	state := &State{}
	var err error
	if d.foreign() {
		state.Fixed = fmt.Sprintf("%s and %s in %s are somebody else's: rotate the CA where they come from; tacitd follows. Put a new root into ca.crt beside the old one first, for as long as certificates live",
			foreignKeyFile, foreignChainFile, d.path)
		if state.Key, err = d.readKey(foreignKeyFile, ownerAndGroup); err == nil {
			state.Chain, err = d.read(foreignChainFile)
		}
		if err == nil {
			state.Roots, err = d.read(rootFile)
		}
		if errors.Is(err, fs.ErrNotExist) && !d.has(rootFile) {
			err = nil // then the chain has to hold the root
		}
		return state, err
	}
	if d.has(rotationFile) {
		text, err := d.readKey(rotationFile, ownerOnly)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, state); err != nil {
			return nil, fmt.Errorf("%s: %d bytes that are no state of a rotation", rotationFile, len(text)) // the parser's text may quote keys
		}
		if state.Rotation.Active() && !d.replaced(state) {
			return state, nil
		}
		state.Roots = nil
	}
	if state.Key, err = d.readKey(keyFile, ownerOnly); err == nil {
		state.Chain, err = d.read(rootFile)
	}
	return state, err
}

// Save implements Store. While a rotation is under way all of the state is in
// one file, which is replaced at once; the files that people know are brought
// in line after it, again and again until that has succeeded.
func (d *Dir) Save(_ context.Context, before, next *State) error {
	lock, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", d.path, err)
	}
	now, err := d.load()
	if err != nil {
		return err
	}
	if !now.Equal(before) {
		return ErrChanged
	}
	kept := *next
	if !next.Rotation.Active() {
		// What people know is the truth again, and holds it already.
		if err := d.align(next); err != nil {
			return err
		}
		kept.Key, kept.Chain, kept.Roots = nil, nil, nil
	}
	text, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		return fmt.Errorf("state of the rotation: %w", err)
	}
	if err := replace(d.file(rotationFile), 0o600, text); err != nil {
		return err
	}
	if !next.Rotation.Active() {
		return nil
	}
	err = d.align(next)
	d.behind = err != nil
	return err
}

// replaced reports whether somebody has put a certificate in the place of the
// signer's that a rotation knows nothing of.
func (d *Dir) replaced(state *State) bool {
	text, err := d.read(rootFile)
	if err != nil {
		return false
	}
	there, err := parseCertificates(text)
	known, err2 := parseCertificates(slices.Concat(state.Chain, state.Roots, state.Rotation.Old, state.Rotation.Next))
	return err == nil && err2 == nil && len(there) > 0 && !contains(known, there[0])
}

// align brings ca.key and ca.crt in line with a state. ca.crt begins with the
// signer's certificate and holds every root.
func (d *Dir) align(state *State) error {
	chain, err := parseCertificates(state.Chain)
	if err != nil {
		return err
	}
	roots, err := parseCertificates(state.Roots)
	if err != nil {
		return err
	}
	for _, root := range roots {
		if !contains(chain, root) {
			chain = append(chain, root)
		}
	}
	if err := d.keep(keyFile, 0o600, state.Key); err != nil {
		return err
	}
	return d.keep(rootFile, 0o644, encode(chain...))
}

func (d *Dir) keep(name string, mode fs.FileMode, content []byte) error {
	if have, err := d.read(name); err == nil && bytes.Equal(have, content) {
		return nil
	}
	return replace(d.file(name), mode, content)
}

// Requested implements Store.
func (d *Dir) Requested(context.Context) (string, error) {
	text, err := d.read(requestFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

// Published implements Store.
func (d *Dir) Published(context.Context) (Status, error) {
	text, err := d.read(statusFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Status{}, nil
	}
	return PublishedStatus(text), err
}

// Request asks the tacitd of this directory for a rotation. The id tells it
// from earlier ones.
func (d *Dir) Request(id string) error { return replace(d.file(requestFile), 0o644, []byte(id+"\n")) }

// Publish keeps the status of an authority in the directory, for
// [ReadStatus], until the context ends; it returns the context's error.
func (d *Dir) Publish(ctx context.Context, a *Authority) error {
	for {
		changed := a.Changed()
		if err := d.publish(a.Status()); err != nil {
			a.config.Log.Error("status of the certificate authority not written", zap.Error(err))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *Dir) publish(s Status) error {
	if d.foreign() {
		return nil // it may be mounted, and is nobody's to write to
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return d.keep(statusFile, 0o644, append(text, '\n'))
}

// ReadStatus reads the status that the tacitd of a directory keeps in it.
func ReadStatus(path string) (*Dir, Status, error) {
	d := &Dir{path: path}
	text, err := d.read(statusFile)
	if err != nil {
		return nil, Status{}, fmt.Errorf("status of the CA (is %s the --ca-dir of a running tacitd, and its root tacitd's own?): %w", path, err)
	}
	var s Status
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, Status{}, fmt.Errorf("status of the CA in %s: %w", d.file(statusFile), err)
	}
	return d, s, nil
}

func (d *Dir) readKey(name string, forbidden fs.FileMode) ([]byte, error) {
	info, err := os.Stat(d.file(name))
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&forbidden != 0 {
		return nil, fmt.Errorf("%s has mode %s: it must be a file that only its owner can read (chmod 600, and think about who may have read it)", name, info.Mode())
	}
	return d.read(name)
}

func (d *Dir) read(name string) ([]byte, error) {
	info, err := os.Stat(d.file(name))
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, the limit is %d", name, info.Size(), maxFile)
	}
	return os.ReadFile(d.file(name))
}

// createOnce makes a file with all of its content at once, unless there is
// one already.
func createOnce(path string, mode fs.FileMode, content func() ([]byte, error)) error {
	data, err := content()
	if err != nil {
		return err
	}
	return write(path, mode, data, func(made string) error {
		if err := os.Link(made, path); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	})
}

// replace writes a file whole or not at all.
func replace(path string, mode fs.FileMode, data []byte) error {
	return write(path, mode, data, func(made string) error { return os.Rename(made, path) })
}

func write(path string, mode fs.FileMode, data []byte, put func(made string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return put(f.Name())
}
