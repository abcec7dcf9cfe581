// Package netns runs functions inside network namespaces.
//
// What does not belong here: anything that is done inside.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ID tells network namespaces of one boot apart while they exist.
type ID struct{ Dev, Inode uint64 }

// Own is the path of the namespace of the thread that opens it.
const Own = "/proc/thread-self/ns/net"

// NS is an open network namespace. It keeps the namespace alive until Close.
type NS struct {
	file *os.File
	id   ID
}

// ErrNotNamespace says that a path leads to something else.
var ErrNotNamespace = errors.New("not a network namespace")

// Open opens the namespace at path, such as /run/netns/NAME or
// /proc/PID/ns/net.
func Open(path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	ns, err := adopt(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return ns, nil
}

func adopt(f *os.File) (*NS, error) {
	kind, err := control(f, func(fd uintptr) (int, error) { return unix.IoctlRetInt(int(fd), unix.NS_GET_NSTYPE) })
	if err != nil || kind != unix.CLONE_NEWNET {
		return nil, ErrNotNamespace
	}
	var st unix.Stat_t
	if _, err := control(f, func(fd uintptr) (int, error) { return 0, unix.Fstat(int(fd), &st) }); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	return &NS{file: f, id: ID{st.Dev, st.Ino}}, nil
}

// FromDescriptor takes over a descriptor of a namespace. It closes one of
// anything else.
func FromDescriptor(fd int) (*NS, error) {
	f := os.NewFile(uintptr(fd), "network namespace")
	ns, err := adopt(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return ns, nil
}

// FromSocket opens the namespace in which a socket was made. It needs
// CAP_NET_ADMIN there.
func FromSocket(socket int) (*NS, error) {
	fd, err := unix.IoctlRetInt(socket, unix.SIOCGSKNS)
	if err != nil {
		return nil, os.NewSyscallError("ioctl SIOCGSKNS", err)
	}
	return FromDescriptor(fd)
}

// OfSocket is the identity of the namespace in which a socket was made.
func OfSocket(socket int) (ID, error) {
	ns, err := FromSocket(socket)
	if err != nil {
		return ID{}, err
	}
	return ns.ID(), ns.Close()
}

// At is the identity of the namespace at path, which it does not keep.
func At(path string) (ID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ID{}, fmt.Errorf("network namespace: %w", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	return ID{st.Dev, st.Ino}, nil
}

// ID is the namespace's identity.
func (n *NS) ID() ID { return n.id }

// Close lets go of the namespace.
func (n *NS) Close() error { return n.file.Close() }

// Do runs fn inside the namespace, on a thread of its own that fn must not
// leave: what fn starts by `go` runs outside, what it executes runs inside.
// The thread ends with the call: the runtime never ends one that it has, so
// that as many as were inside at once would be left for good, each with its
// stacks.
func (n *NS) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		restored, err := n.run(fn)
		if restored && unix.Gettid() == unix.Getpid() { // the main thread cannot end
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func (n *NS) run(fn func() error) (restored bool, err error) {
	home, err := os.Open(Own)
	if err != nil {
		return true, fmt.Errorf("own network namespace: %w", err)
	}
	defer home.Close()
	if err := enter(n.file); err != nil {
		return true, fmt.Errorf("enter network namespace: %w", err)
	}
	err = fn()
	return enter(home) == nil, err
}

func enter(f *os.File) error {
	_, err := control(f, func(fd uintptr) (int, error) { return 0, unix.Setns(int(fd), unix.CLONE_NEWNET) })
	return os.NewSyscallError("setns", err)
}

// control runs fn on the descriptor and keeps it open meanwhile.
func control(f *os.File, fn func(fd uintptr) (int, error)) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if rawErr := raw.Control(func(fd uintptr) { n, err = fn(fd) }); rawErr != nil {
		return 0, rawErr
	}
	return n, err
}
