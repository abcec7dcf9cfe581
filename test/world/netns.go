package world

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/netns"
)

// namespace is a network namespace with a file that keeps it alive.
type namespace struct {
	*netns.NS
	path string
}

// newNamespace makes a network namespace with its loopback up.
func newNamespace(path string) (*namespace, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, err
	}
	_ = f.Close() // empty, a mount point only
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep network namespace: %w", err)
		}
		return prepareNamespace()
	})
	if err != nil {
		return nil, errors.Join(err, letGo(path))
	}
	ns, err := netns.Open(path)
	if err != nil {
		return nil, errors.Join(err, letGo(path))
	}
	return &namespace{ns, path}, nil
}

// close lets go of the namespace: it ends when its last process and socket do.
func (n *namespace) close() error { return errors.Join(n.Close(), letGo(n.path)) }

func letGo(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return os.Remove(path)
}

// onThread runs fn on a thread of its own, which ends with it: whatever fn
// changed of the thread is nobody else's.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- fn()
	}()
	return <-done
}

// writeSetting sets a kernel parameter of the current namespace. One that
// does not exist here, such as all of IPv6 on a kernel without, is left out.
func writeSetting(name, value string) error {
	f, err := os.OpenFile("/proc/sys/net/"+name, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
