package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// checkPeer makes sure that who connects is the proxy: by its user and, where
// configured, by the control group that the kubelet has put it into. It
// returns the process id, for messages.
func (s *Server) checkPeer(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("peer of the proxy's socket: %w", err)
	}
	if controlErr := raw.Control(func(fd uintptr) { pid, err = s.checkPeerOf(int(fd)) }); controlErr != nil {
		err = controlErr
	}
	if err != nil {
		return 0, fmt.Errorf("refused a process that connects as the proxy: %w", err)
	}
	return pid, nil
}

func (s *Server) checkPeerOf(fd int) (int, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	pid := int(cred.Pid)
	if int(cred.Uid) != s.cfg.ProxyUID {
		return 0, fmt.Errorf("process %d runs as user %d, not as the proxy's user %d", pid, cred.Uid, s.cfg.ProxyUID)
	}
	if s.cfg.ProxyCgroup == "" && s.cfg.CheckGroups == nil {
		return pid, nil
	}
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	if err := stillAlive(fd); err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	if s.cfg.ProxyCgroup != "" && !inCgroup(string(content), s.cfg.ProxyCgroup) {
		return 0, fmt.Errorf("process %d is not in the proxy's control group %s", pid, s.cfg.ProxyCgroup)
	}
	if s.cfg.CheckGroups != nil {
		if err := s.cfg.CheckGroups(string(content)); err != nil {
			return 0, fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return pid, nil
}

// stillAlive makes sure that the peer's process id has not passed to another
// process meanwhile (Linux 6.5 on; older kernels cannot tell).
func stillAlive(fd int) error {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("getsockopt SO_PEERPIDFD", err)
	}
	defer unix.Close(pidfd)
	// The descriptor of a process becomes readable when that ends.
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0); err != nil || n != 0 {
		return errors.New("it has ended")
	}
	return nil
}

// inCgroup reads the lines "ID:CONTROLLERS:PATH" of /proc/PID/cgroup. A
// process can be moved into a group only by who owns it.
func inCgroup(content, want string) bool {
	want = strings.TrimSuffix(want, "/")
	for line := range strings.Lines(content) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) == 3 && (parts[2] == want || strings.HasPrefix(parts[2], want+"/")) {
			return true
		}
	}
	return false
}
