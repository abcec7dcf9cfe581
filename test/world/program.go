package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// Program is a running program of the world, or one that has ended.
type Program struct {
	Name string
	Log  string // file that holds its standard output and error

	cmd   *exec.Cmd
	ended chan struct{}
	err   error // of Wait; set before ended is closed
}

// stopGrace is how long programs have to end after SIGTERM at Close.
const stopGrace = 5 * time.Second

// start runs a program in the background. The caller holds w.mu.
func (w *World) start(name string, spec execSpec, path string, args ...string) (*Program, error) {
	w.starts[name]++
	file := name + ".log"
	if n := w.starts[name]; n > 1 {
		file = fmt.Sprintf("%s.%d.log", name, n)
	}
	// It outlives the caller's context: only signals end it.
	p, err := Launch(name, filepath.Join(w.dir, "logs", file), spec.command(context.Background(), path, args))
	if err != nil {
		return nil, err
	}
	w.programs = append(w.programs, p)
	return p, nil
}

// Launch starts a command in the background, in a process group of its own,
// with its output at the end of a log file.
func Launch(name, log string, cmd *exec.Cmd) (*Program, error) {
	p := &Program{Name: name, Log: log, cmd: cmd, ended: make(chan struct{})}
	file, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	cmd.Stdout, cmd.Stderr = file, file
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// PID is the process, as everybody in the world sees it.
func (p *Program) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the program has ended.
func (p *Program) Ended() <-chan struct{} { return p.ended }

// Signal sends a signal to the program's process group.
func (p *Program) Signal(s syscall.Signal) error {
	if err := unix.Kill(-p.PID(), s); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// Kill ends the program with SIGKILL and waits for its end.
func (p *Program) Kill() error {
	err := p.Signal(unix.SIGKILL)
	<-p.ended
	return err
}

// Stop ends the program with SIGTERM and waits for its end, or the context's.
// A program that ends with a code other than 0 is an error.
func (p *Program) Stop(ctx context.Context) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// Wait waits for the program's own end, or the context's.
func (p *Program) Wait(ctx context.Context) error {
	select {
	case <-p.ended:
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w", p.Name, ctx.Err())
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", p.Name, p.err, p.tail())
	}
	return nil
}

// tail is the end of the log, for error messages.
func (p *Program) tail() string {
	const most = 2 << 10
	data, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-most):])
}

// Mark is the current end of the program's log, for [Program.WaitLog].
func (p *Program) Mark() int64 {
	st, err := os.Stat(p.Log)
	if err != nil {
		return 0 // then WaitLog reports it
	}
	return st.Size()
}

// WaitLog returns the first line of the log behind mark (0: its beginning)
// that matches. It fails when the context or the program ends without one.
func (p *Program) WaitLog(ctx context.Context, mark int64, match func(line string) bool) (string, error) {
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return "", err
	}
	defer func() { _ = watch.Close() }()
	if err := watch.Add(p.Log); err != nil {
		return "", err
	}
	for ended := p.ended; ; {
		line, next, err := findLine(p.Log, mark, match)
		if line != "" || err != nil {
			return line, err
		}
		if ended == nil {
			return "", fmt.Errorf("%s ended without the expected log line:\n%s", p.Name, p.tail())
		}
		mark = next
		select {
		case <-watch.Events:
		case err := <-watch.Errors:
			return "", fmt.Errorf("watch %s: %w", p.Log, err)
		case <-ended:
			ended = nil // one last look
		case <-ctx.Done():
			return "", fmt.Errorf("log of %s: no such line: %w\n%s", p.Name, ctx.Err(), p.tail())
		}
	}
}

// findLine looks at whole lines only; next is where the unread rest begins.
func findLine(file string, from int64, match func(string) bool) (line string, next int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", from, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return "", from, err
	}
	data := make([]byte, max(0, st.Size()-from))
	n, err := f.ReadAt(data, from)
	if err != nil && n < len(data) {
		return "", from, err
	}
	for l := range bytes.Lines(data) {
		if l[len(l)-1] != '\n' {
			break
		}
		from += int64(len(l))
		if text := string(bytes.TrimSuffix(l, []byte("\n"))); match(text) {
			return text, from, nil
		}
	}
	return "", from, nil
}

// stopAll ends programs in the reverse order of their start: SIGTERM, and
// SIGKILL for what is left of their process groups.
func stopAll(programs []*Program) {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	for i := len(programs) - 1; i >= 0; i-- {
		_ = programs[i].Stop(ctx) // how it ends is of no interest any more
		_ = programs[i].Kill()
	}
}
