package world

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace, kept alive by a file.
type namespace struct{ path string }

// newNamespace makes a network namespace with its loopback up.
func newNamespace(path string) (*namespace, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, err
	}
	_ = f.Close() // empty, a mount point only
	n := &namespace{path: path}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	})
	if err == nil {
		err = n.do(prepareNamespace)
	}
	if err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

// do runs fn on a thread inside the namespace. Sockets that fn makes belong
// to it for good; goroutines that fn starts do not run in it.
func (n *namespace) do(fn func() error) error {
	f, err := os.Open(n.path)
	if err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	defer func() { _ = f.Close() }()
	return onThread(func() error {
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", n.path, err)
		}
		return fn()
	})
}

// inode identifies the namespace.
func (n *namespace) inode() (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(n.path, &st)
	return st.Ino, err
}

// close lets go of the namespace: it ends when its last process and socket do.
func (n *namespace) close() error {
	if err := unix.Unmount(n.path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", n.path, err)
	}
	return os.Remove(n.path)
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
