//go:build !inpod

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/test/demo"
	"github.com/tacit-mesh/tacit/test/world"
)

// keptVariable marks the processes of a demo that stays up. The front process
// sets it when it starts the demo behind itself.
const keptVariable = "TACIT_DEMO_KEPT"

// endOfShow is what a kept demo prints when the walk is over and it goes on
// silently: ASCII "end of transmission".
const endOfShow = 0x04

func newDemoCommand() *cobra.Command {
	var (
		keep   bool
		config demo.Config
	)
	own, _ := os.Executable() // "" makes relative paths, as good a guess
	bin := filepath.Dir(own)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See the mesh work: two nodes on this machine, step by step",
		Long: `Build two nodes and their pods from network namespaces, start nginx, Redis and
PostgreSQL in them, and walk through what the mesh does with their traffic:
encryption, identity, denial, skipped ports, changes of policy, and a proxy
that dies. Each step checks what it claims; if one does not hold, the demo
fails.

It needs root, changes nothing of the machine's network, and leaves no trace.`,
		Example: `  tacit demo
  tacit demo --keep
  tacit demo enter shop/frontend curl -s http://web
  tacit demo ui
  tacit demo end`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.Out = cmd.OutOrStdout()
			kept := os.Getenv(keptVariable) != ""
			// The front process of a kept one knows whether there is a terminal.
			config.Color = (kept || isTerminal(config.Out)) && os.Getenv("NO_COLOR") == ""
			if keep && !kept {
				return startKept(cmd)
			}
			world.Enter(func() int {
				if err := runDemo(cmd.Context(), config, kept); err != nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "tacit demo:", err)
					return 1
				}
				return 0
			})
			return nil
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave it up at the end and say how to look around")
	cmd.Flags().StringVar(&config.Manifests, "manifests", filepath.Join(bin, "../deploy/demo"), "`directory` of the demo's manifests")
	cmd.Flags().StringVar(&config.Programs, "programs", bin, "`directory` of tacitd, tacit-agent, tacit-proxy and tacit")
	cmd.AddCommand(demoEnterCommand(), demoUICommand(), demoEndCommand())
	return cmd
}

// runDemo is what happens inside the world's namespaces.
func runDemo(ctx context.Context, config demo.Config, keep bool) error {
	d, err := demo.Start(ctx, config)
	if err != nil {
		return err
	}
	err = d.Walk(ctx)
	if err == nil && keep {
		d.LookAround(os.Args[0])
		_, _ = config.Out.Write([]byte{endOfShow})
		<-ctx.Done()
	}
	return errors.Join(err, d.Close())
}

// startKept runs the demo in a session of its own and shows what it prints,
// until it is over or goes on silently.
func startKept(cmd *cobra.Command) error {
	if _, err := keptDemo(); err == nil {
		return errors.New("a demo is up already: end it with tacit demo end")
	}
	show, out, err := os.Pipe()
	if err != nil {
		return err
	}
	behind := exec.Command("/proc/self/exe")
	behind.Args = os.Args
	behind.Env = append(os.Environ(), keptVariable+"=1")
	if !isTerminal(cmd.OutOrStdout()) {
		behind.Env = append(behind.Env, "NO_COLOR=1")
	}
	behind.Stdout, behind.Stderr = out, out
	behind.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := behind.Start(); err != nil {
		return err
	}
	_ = out.Close() // ours; the demo has its own
	stop := context.AfterFunc(cmd.Context(), func() { _ = behind.Process.Signal(unix.SIGTERM) })
	defer stop()
	if untilEndOfShow(cmd.OutOrStdout(), show) {
		return nil
	}
	if err := behind.Wait(); err != nil {
		return exitError(max(1, behind.ProcessState.ExitCode()))
	}
	return nil
}

// untilEndOfShow copies until the mark, and reports whether there was one.
func untilEndOfShow(out io.Writer, show io.Reader) bool {
	buf := make([]byte, 4<<10)
	for {
		n, err := show.Read(buf)
		text, _, found := strings.Cut(string(buf[:n]), string(rune(endOfShow)))
		_, _ = io.WriteString(out, text)
		if found || err != nil {
			return found
		}
	}
}

func demoEnterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "enter NAMESPACE/POD|NODE [COMMAND [ARGUMENT...]]",
		Short: "Run a command, or a shell, in a pod or on a node of a kept demo",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kept, err := keptDemo()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				args = append(args, "sh")
			}
			inside := world.Attach(cmd.Context(), kept.init, []string{"demo"}, args[0], args[1:]...)
			inside.Stdin, inside.Stdout, inside.Stderr = os.Stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()
			var exit *exec.ExitError
			if err := inside.Run(); errors.As(err, &exit) {
				return exitError(exit.ExitCode())
			} else if err != nil {
				return fmt.Errorf("enter %s: %w", args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false) // flags behind the pod are the command's
	return cmd
}

func demoUICommand() *cobra.Command {
	var u ui
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Show the map of a kept demo in a browser",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return u.runInDemo(cmd)
		},
	}
	u.browserFlags(cmd.Flags())
	return cmd
}

func (u *ui) runInDemo(cmd *cobra.Command) error {
	kept, err := keptDemo()
	if err != nil {
		return err
	}
	u.socket = kept.path(demo.MapSocket) // a socket belongs to no network
	return u.run(cmd)
}

func demoEndCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "end",
		Short: "End a kept demo and remove everything of it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kept, err := keptDemo()
			if err != nil {
				return err
			}
			handle, err := unix.PidfdOpen(kept.outer, 0)
			if err != nil {
				return fmt.Errorf("demo process %d: %w", kept.outer, err)
			}
			defer func() { _ = unix.Close(handle) }()
			if err := unix.PidfdSendSignal(handle, unix.SIGTERM, nil, 0); err != nil {
				return fmt.Errorf("end demo process %d: %w", kept.outer, err)
			}
			const ended = unix.POLLIN
			wait := []unix.PollFd{{Fd: int32(handle), Events: ended}}
			for {
				if _, err := unix.Poll(wait, -1); !errors.Is(err, unix.EINTR) {
					return err
				}
			}
		},
	}
}

// keptProcesses are the two of a kept demo that matter, as the machine numbers
// them: process 1 of its namespaces, and its parent.
type keptProcesses struct{ init, outer int }

// keptDemo finds the demo that is up by the environment of its processes: it
// leaves no file on the machine that could say so.
func keptDemo() (keptProcesses, error) {
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return keptProcesses{}, err
	}
	for _, file := range files {
		env, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(env), keptVariable+"=1") || !world.IsInit(env) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has just ended
		}
		var parent int
		behindName := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
		if _, err := fmt.Sscanf(behindName, " %s %d", new(string), &parent); err == nil {
			return keptProcesses{init: pid, outer: parent}, nil
		}
	}
	return keptProcesses{}, errors.New("no demo is up here: start one with tacit demo --keep (or make demo KEEP=1)")
}
