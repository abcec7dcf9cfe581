// Command app is what the pods of the tests run: servers, clients that count,
// and the process that holds a pod's namespaces.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/test/kube/load"
)

func main() { cli.Main(command()) }

// command without an argument is a pause container, as that is how container
// runtimes run one.
func command() *cobra.Command {
	cmd := &cobra.Command{Use: "app", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return pause(cmd.Context()) }}
	cmd.AddCommand(serve(), client(), report(), get(), denied(), exchange(), webhook())
	return cmd
}

// pause waits, and reaps what its pod's containers leave behind.
func pause(ctx context.Context) error {
	children := make(chan os.Signal, 16)
	signal.Notify(children, unix.SIGCHLD)
	for {
		select {
		case <-children:
			for pid := 1; pid > 0; {
				pid, _ = unix.Wait4(-1, nil, unix.WNOHANG, nil) // -1 when there is none
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func serve() *cobra.Command {
	cmd := &cobra.Command{Use: "serve", Short: "serve until told to end", Args: cobra.NoArgs}
	lameDuck := cmd.Flags().Duration("lame-duck", 0, "go on for this `time` after that")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return load.Serve(cmd.Context(), *lameDuck) }
	return cmd
}

func client() *cobra.Command {
	cmd := &cobra.Command{Use: "client HOST", Short: "make traffic to a server and count", Args: cobra.ExactArgs(1)}
	var c load.Client
	cmd.Flags().IntVar(&c.Exchanges, "exchanges", 0, "`number` of workers that use a connection once")
	cmd.Flags().IntVar(&c.Streams, "streams", 0, "`number` of connections that live on")
	cmd.Flags().IntVar(&c.Requests, "requests", 0, "`number` of workers that make HTTP requests")
	cmd.Flags().DurationVar(&c.Pause, "pause", 50*time.Millisecond, "`time` from one beginning to the next, of each")
	cmd.Flags().BoolVar(&c.FINLast, "fin-last", false, "have the workers that use a connection once send FIN when the message is back, not with it, and begin with what is no TLS")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c.Host = args[0]
		return c.Run(cmd.Context())
	}
	return cmd
}

func report() *cobra.Command {
	return &cobra.Command{Use: "report", Short: "print what the client of this pod has counted", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return fetch(cmd.Context(), load.ReportURL, cmd.OutOrStdout())
	}}
}

func get() *cobra.Command {
	cmd := &cobra.Command{Use: "get URL", Short: "make a request", Args: cobra.ExactArgs(1)}
	timeout := cmd.Flags().Duration("timeout", 10*time.Second, "of the request")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), *timeout)
		defer cancel()
		return fetch(ctx, args[0], cmd.OutOrStdout())
	}
	return cmd
}

func fetch(ctx context.Context, url string, out io.Writer) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if _, err := io.Copy(out, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

func denied() *cobra.Command {
	return &cobra.Command{Use: "denied URL", Short: "make a request and fail if it is answered with success", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), 20*time.Second)
		defer cancel()
		var answer strings.Builder
		var resolving *net.DNSError
		switch err := fetch(ctx, args[0], &answer); {
		case err == nil:
			return fmt.Errorf("answered: %s", answer.String())
		case errors.As(err, &resolving), errors.Is(err, context.DeadlineExceeded), errors.Is(err, unix.ECONNREFUSED):
			return fmt.Errorf("neither denied nor answered: %w", err)
		default:
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "denied:", err)
			return err
		}
	}}
}

func exchange() *cobra.Command {
	cmd := &cobra.Command{Use: "exchange HOST...", Short: "send messages to servers and get them back", Args: cobra.MinimumNArgs(1)}
	times := cmd.Flags().Int("times", 1, "`number` of messages to each, over a connection each")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		group, ctx := errgroup.WithContext(cmd.Context())
		group.SetLimit(8)
		for _, host := range args {
			group.Go(func() error {
				for range *times {
					if err := (load.Client{Host: host}).Exchange(ctx); err != nil {
						return fmt.Errorf("%s: %w", host, err)
					}
				}
				return nil
			})
		}
		return group.Wait()
	}
	return cmd
}
