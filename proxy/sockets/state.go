package sockets

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

// maxState bounds what is read back.
const maxState = 256 << 20

// state is memory that nobody can change any more, for the agent to keep.
type state struct{ f *os.File }

func newState(content [][]byte) (*state, error) {
	size := 0
	for _, piece := range content {
		size += len(piece)
	}
	if size > maxState {
		return nil, fmt.Errorf("save state: %d bytes, at most %d are possible", size, maxState)
	}
	fd, err := unix.MemfdCreate("tacit-proxy", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3
		fd, err = unix.MemfdCreate("tacit-proxy", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("save state: %w", os.NewSyscallError("memfd_create", err))
	}
	s := &state{os.NewFile(uintptr(fd), "state")}
	for _, piece := range content {
		if err == nil {
			_, err = s.f.Write(piece)
		}
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, protocol.Seals)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("save state: %w", err)
	}
	return s, nil
}

// send works beside close: the descriptor stays open until it is sent.
func (s *state) send(c *protocol.Conn) error {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("send state: %w", err)
	}
	m := &protocol.FromProxy{Message: &protocol.FromProxy_Save{Save: &protocol.Save{}}}
	// Control fails if it is closed: then a newer one is to be sent.
	_ = raw.Control(func(fd uintptr) { err = c.Send(m, int(fd)) })
	return err
}

func (s *state) close() { s.f.Close() }

// readState takes over the descriptor.
func readState(fd int) ([]byte, error) {
	f := os.NewFile(uintptr(fd), "state")
	defer f.Close()
	if err := protocol.CheckSealed(fd); err != nil {
		return nil, fmt.Errorf("restore state: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("restore state: %w", err)
	}
	if info.Size() > maxState {
		return nil, fmt.Errorf("restore state: %d bytes, at most %d are possible", info.Size(), maxState)
	}
	content := make([]byte, info.Size())
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, info.Size()), content); err != nil {
		return nil, fmt.Errorf("restore state: %w", err)
	}
	return content, nil
}
