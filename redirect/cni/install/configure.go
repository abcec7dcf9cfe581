package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/redirect/cni"
)

// saved ends the name of a single plugin's configuration that we have made a
// list of: the list takes its place, and it takes its own again at the end.
const saved = ".tacit-saved"

// configurations are the files that container runtimes read, in the order in
// which they do: they take the first.
func (i *Installer) configurations() ([]string, error) {
	entries, err := os.ReadDir(i.cfg.ConfDir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			paths = append(paths, filepath.Join(i.cfg.ConfDir, e.Name()))
		}
	}
	slices.Sort(paths)
	return paths, nil
}

// configure puts our entry into the configuration that is in use, and takes it
// out of those that were before.
func (i *Installer) configure() error {
	paths, err := i.configurations()
	if err != nil {
		return fmt.Errorf("network configurations: %w", err)
	}
	if len(paths) == 0 {
		return fmt.Errorf("there is no network configuration in %s yet: is the cluster's CNI installed, and is this its directory?", i.cfg.ConfDir)
	}
	entry, err := json.Marshal(i.cfg.Entry)
	if err != nil {
		return fmt.Errorf("entry of the CNI plugin: %w", err)
	}
	first := paths[0]
	if filepath.Ext(first) == ".conflist" {
		err = change(first, func(text []byte) ([]byte, error) { return add(text, entry) })
	} else {
		first, err = chain(first, entry)
	}
	if err != nil {
		return err
	}
	for _, path := range paths[1:] {
		if path != first && filepath.Ext(path) == ".conflist" {
			// One that is not in use and not readable is nobody's concern.
			_ = change(path, remove)
		}
	}
	return nil
}

// chain makes a list of a single plugin's configuration, in a file beside it.
func chain(path string, entry []byte) (list string, err error) {
	single, info, err := read(path)
	if err != nil {
		return "", err
	}
	text, err := listWith(single, entry)
	if err != nil {
		return "", fmt.Errorf("network configuration %s: %w", path, err)
	}
	list = strings.TrimSuffix(path, filepath.Ext(path)) + ".conflist"
	if err := replace(list, bytes.NewReader(text), info.Mode().Perm()); err != nil {
		return "", fmt.Errorf("network configuration %s: %w", list, err)
	}
	return list, os.Rename(path, path+saved) // until here the single one is in use
}

func listWith(single, entry []byte) ([]byte, error) {
	text, err := list(single)
	if err != nil {
		return nil, err
	}
	return add(text, entry)
}

// change rewrites a file, unless others do so meanwhile: then they are heard
// first.
func change(path string, edit func([]byte) ([]byte, error)) error {
	before, info, err := read(path)
	if err != nil {
		return err
	}
	after, err := edit(before)
	if err != nil {
		return fmt.Errorf("network configuration %s: %w", path, err)
	}
	if bytes.Equal(before, after) {
		return nil
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
		return fmt.Errorf("network configuration %s is just being rewritten", path)
	}
	if err := replace(path, bytes.NewReader(after), info.Mode().Perm()); err != nil {
		return fmt.Errorf("network configuration %s: %w", path, err)
	}
	return nil
}

func read(path string) ([]byte, os.FileInfo, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("network configuration: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, fmt.Errorf("network configuration: %w", err)
	}
	return text, info, nil
}

// restore takes our entry out of every configuration.
func (i *Installer) restore() error {
	entries, err := os.ReadDir(i.cfg.ConfDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("network configurations: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), saved); ok {
			errs = append(errs, i.unchain(filepath.Join(i.cfg.ConfDir, name)))
		}
	}
	paths, err := i.configurations()
	errs = append(errs, err)
	for _, path := range paths {
		// What does not name the plugin is not ours to judge.
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(cni.Type)) {
			errs = append(errs, change(path, remove))
		}
	}
	return errors.Join(errs...)
}

// unchain undoes chain. A list that others have changed meanwhile stays.
func (i *Installer) unchain(path string) error {
	single, err := os.ReadFile(path + saved)
	if err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	listPath := strings.TrimSuffix(path, filepath.Ext(path)) + ".conflist"
	now, err := os.ReadFile(listPath)
	if err == nil {
		now, err = remove(now)
	}
	made, listErr := list(single)
	if err == nil && (listErr != nil || !bytes.Equal(now, made)) {
		return os.Remove(path + saved)
	}
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		if err := os.Rename(path+saved, path); err != nil {
			return err
		}
	} else if err := os.Remove(path + saved); err != nil { // its owner has written it anew
		return err
	}
	if err := os.Remove(listPath); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
