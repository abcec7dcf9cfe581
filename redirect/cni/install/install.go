// Package install puts the CNI plugin onto the node, keeps it there while
// others rewrite the network configuration, and takes it away again.
//
// What does not belong here: what the plugin does.
package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/redirect/cni"
)

// Config says where the plugin goes.
type Config struct {
	Binary  string // of the plugin, in the agent's image
	BinDir  string // of the node's plugins
	ConfDir string // of the node's network configurations
	Entry   cni.Config
	// Kubeconfig makes the file by which the plugin reaches the API. While it
	// fails the file stays as it was.
	Kubeconfig func() ([]byte, error)
	Log        *zap.Logger
}

// Installer keeps the plugin in place.
type Installer struct {
	cfg         Config
	installed   atomic.Bool
	last        string // error, logged once
	lastRenewal string // of the kubeconfig, likewise
}

// New makes an installer; nothing happens before Run.
func New(cfg Config) *Installer { return &Installer{cfg: cfg} }

// Installed reports whether the plugin is in place.
func (i *Installer) Installed() bool { return i.installed.Load() }

const (
	// settle lets whoever writes a configuration come to an end, and bounds
	// what a contest over it costs.
	settle = 100 * time.Millisecond
	// lookEvery is for what the kernel does not announce: tokens that are
	// renewed, file systems without notifications.
	lookEvery = 20 * time.Second
)

// Run installs the plugin and keeps it in place until the context ends. Then
// it stays: pods that are made meanwhile wait for the next agent.
func (i *Installer) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch network configurations: %w", err)
	}
	defer watcher.Close()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		for _, dir := range []string{i.cfg.ConfDir, i.cfg.BinDir} {
			err = errors.Join(err, watcher.Add(dir)) // again, as it may have been made anew
		}
		i.report(errors.Join(err, i.ensure()))
		err = nil
		if !i.wait(ctx, watcher, tick.C) {
			return ctx.Err()
		}
	}
}

// wait returns when there may be something to do, false when the context ends.
func (i *Installer) wait(ctx context.Context, watcher *fsnotify.Watcher, tick <-chan time.Time) bool {
	var due <-chan time.Time
	for {
		select {
		case event := <-watcher.Events:
			// What this itself cannot finish, as on a full disk, is no news.
			if due == nil && !strings.HasPrefix(filepath.Base(event.Name), temporary) {
				due = time.After(settle)
			}
		case err := <-watcher.Errors:
			i.cfg.Log.Warn("watch network configurations", zap.Error(err))
		case <-due:
			return true
		case <-tick:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

func (i *Installer) report(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if err != nil && text != i.last {
		i.cfg.Log.Error("the CNI plugin is not in place; it is tried again", zap.Error(err))
	}
	if was := i.installed.Swap(err == nil); err == nil && !was {
		i.cfg.Log.Info("the CNI plugin is in place", zap.String("bin", i.cfg.BinDir), zap.String("conf", i.cfg.ConfDir))
	}
	i.last = text
}

// ensure puts in place what is missing, in the order in which it is needed.
func (i *Installer) ensure() error {
	if i.cfg.Kubeconfig != nil {
		if err := i.writeKubeconfig(); err != nil {
			return fmt.Errorf("how the CNI plugin reaches the API: %w", err)
		}
	}
	if err := i.copyBinary(); err != nil {
		return fmt.Errorf("binary of the CNI plugin: %w", err)
	}
	return i.configure()
}

func (i *Installer) writeKubeconfig() error {
	path := cni.Kubeconfig(i.cfg.BinDir)
	text, err := i.cfg.Kubeconfig()
	if err == nil {
		i.lastRenewal = ""
		return writeState(path, text)
	}
	if _, missing := os.Stat(path); missing != nil {
		return err
	}
	if err.Error() != i.lastRenewal {
		i.lastRenewal = err.Error()
		i.cfg.Log.Warn("the CNI plugin reaches the API as before, for as long as that holds", zap.Error(err))
	}
	return nil
}

// KeepEnrolled leaves the list of enrolled namespaces for the plugin.
func (i *Installer) KeepEnrolled(namespaces []string) error {
	text, err := json.Marshal(cni.Enrolled{Namespaces: namespaces})
	if err != nil {
		return fmt.Errorf("list of enrolled namespaces: %w", err)
	}
	return writeState(cni.EnrolledFile(i.cfg.BinDir), text)
}

// writeState writes a file that root alone may read, if it is not as wanted.
func writeState(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, text) {
		return nil
	}
	return replace(path, bytes.NewReader(text), 0o600)
}

// copyBinary never has the binary in memory: it is as large as all that the
// agent keeps there.
func (i *Installer) copyBinary() error {
	want, err := os.Open(i.cfg.Binary)
	if err != nil {
		return err
	}
	defer want.Close()
	path := filepath.Join(i.cfg.BinDir, cni.Type)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm() == 0o755 {
		if same, err := isCopy(path, want); err == nil && same {
			return nil
		}
		if _, err := want.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	return replace(path, want, 0o755)
}

// isCopy reports whether a file has the content of a reader.
func isCopy(path string, of io.Reader) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var have, want [32 << 10]byte
	for {
		n, err := io.ReadFull(f, have[:])
		m, wantErr := io.ReadFull(of, want[:])
		switch {
		case !bytes.Equal(have[:n], want[:m]):
			return false, nil
		case err == nil && wantErr == nil:
		case isEnd(err) && isEnd(wantErr):
			return true, nil
		default:
			return false, errors.Join(err, wantErr)
		}
	}
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// replace puts a file in the place of another at once, and makes sure that a
// power cut leaves the one or the other.
func replace(path string, content io.Reader, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), temporary+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// temporary begins the names of files that are being written. No runtime takes
// them for configurations, by their lack of an extension.
const temporary = ".tacit-new-"

// Uninstall takes away what Run has put in place.
func (i *Installer) Uninstall() error {
	errs := []error{i.restore()}
	paths := []string{filepath.Join(i.cfg.BinDir, cni.Type), filepath.Dir(cni.Kubeconfig(i.cfg.BinDir))}
	for _, dir := range []string{i.cfg.BinDir, i.cfg.ConfDir} {
		left, err := filepath.Glob(filepath.Join(dir, temporary+"*"))
		errs = append(errs, err)
		paths = slices.Concat(paths, left)
	}
	for _, path := range paths {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}
