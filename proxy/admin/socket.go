package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// turn is how often a process that waits for the socket looks whether the
// other one still answers: the kernel has no event for that.
const turn = 250 * time.Millisecond

// listen opens the socket at path, mode 0600, in a directory that is made
// with mode 0700 if absent. The file of a process that no longer listens is
// replaced; while one listens, listen waits until the context ends.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("directory of the admin socket: %w", err)
	}
	look := time.NewTicker(turn)
	defer look.Stop()
	for {
		free, err := isFree(path)
		if err != nil {
			return nil, err
		}
		if free {
			return bind(path)
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// isFree reports whether nobody listens at path. What is there and is no
// socket is not ours to replace.
func isFree(path string) (bool, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("admin socket: %w", err)
	case info.Mode().Type() != os.ModeSocket:
		return false, fmt.Errorf("admin socket: %s exists and is no socket: remove it or choose another path", path)
	}
	conn, err := net.DialTimeout("unix", path, turn)
	switch {
	case err == nil:
		return false, conn.Close()
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return true, nil
	case errors.Is(err, os.ErrPermission):
		return false, fmt.Errorf("admin socket: another user's socket is in the way: %w", err)
	}
	return false, nil // its backlog is full, so somebody listens
}

// bind makes the socket beside its place and then moves it there, so that it
// is never seen with a wider mode and never absent while it is replaced.
func bind(path string) (net.Listener, error) {
	fresh := path + "." + strconv.Itoa(os.Getpid())
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	var info os.FileInfo
	if err = os.Chmod(fresh, 0o600); err == nil {
		if info, err = os.Lstat(fresh); err == nil {
			err = os.Rename(fresh, path)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("admin socket: %w", err), listener.Close(), os.Remove(fresh))
	}
	return &boundListener{UnixListener: listener, path: path, file: info}, nil
}

// boundListener takes its file away when it closes, unless another process
// has put its own there meanwhile.
type boundListener struct {
	*net.UnixListener
	path string
	file os.FileInfo
	once sync.Once
}

func (l *boundListener) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
			os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}
