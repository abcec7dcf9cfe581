//go:build !inpod

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/cmd/tacit/support"
	"github.com/tacit-mesh/tacit/deploy/facts"
)

// supportSince is how far back it looks by default.
const supportSince = 15 * time.Minute

// supportFlags are what goes into an archive, and where it goes.
type supportFlags struct {
	client
	file     string
	maxSize  int // MiB
	logLines int64
	since    time.Duration
	metrics  []string
	logs     []string
}

func supportCommand() *cobra.Command {
	var f supportFlags
	cmd := &cobra.Command{
		Use:   "support [-f FILE]",
		Short: "Pack what a maintainer needs to find out what is wrong, without secrets",
		Long: `Pack into one archive what somebody who maintains Tacit will ask for: versions,
what the proxies serve, the mesh as each of them knows it, certificates without
their keys, the last connections and denials, coverage, metrics, logs, kernels
and iptables, what tacit check finds, and of Kubernetes Tacit's own objects, the
policies and the events.

Private keys, tokens and the values of whatever is named like a secret are taken
out, and objects of the kind Secret are not read. Names of pods, namespaces and
addresses stay: look through it before you give it away.

The last file of the archive, index.json, lists what is in it, what was cut and
what is missing, and why. In a cluster this takes a kubeconfig and the rights to
create pods/exec and pods/portforward in Tacit's namespace, and to read logs and
what is packed; what you may not read is missing. Elsewhere it packs what the
proxy of this machine says, or those of the demo with --demo; name their metrics
and logs with --metrics and --log.

Exit status: 0 all is there, 4 something is missing or cut, 1 nothing is packed.`,
		Example: `  tacit support
  tacit support -f incident-12.tar.gz --since 1h
  tacit support --socket /run/tacit/admin.sock --metrics http://127.0.0.1:15020/metrics --log proxy.log`,
		Args: cobra.NoArgs,
	}
	set := cmd.Flags()
	f.client.flags(cmd)
	set.StringVarP(&f.file, "file", "f", "", "`file` to write, - for the standard output; by default one of this directory that has the time in its name")
	set.IntVar(&f.maxSize, "max-size", 256, "`MiB` that all parts may have together, before they are compressed")
	set.Int64Var(&f.logLines, "log-lines", 10000, "`number` of lines to keep of each log, the last")
	set.DurationVar(&f.since, "since", supportSince, "how far to look back for connections and requests")
	set.StringSliceVar(&f.metrics, "metrics", nil, "outside of a cluster, `addresses` of metrics, such as http://127.0.0.1:15020/metrics")
	set.StringSliceVar(&f.logs, "log", nil, "outside of a cluster, `files` of logs")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.maxSize < 1 || f.logLines < 1 {
			return errors.New("support: want 1 or more for --max-size and --log-lines")
		}
		return f.run(cmd)
	}
	_ = set.MarkHidden("output") // there is but one form
	return cmd
}

func (f *supportFlags) run(cmd *cobra.Command) error {
	parts, err := f.parts(cmd)
	if err != nil {
		return err
	}
	name := f.file
	if name == "" {
		name = "tacit-support-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
	}
	p := support.Packer{Command: os.Args, MaxBytes: f.maxSize << 20, Progress: func(done, of int, file support.File) {
		state := fmt.Sprintf("%.1f KiB", float64(file.Bytes)/1024)
		switch {
		case file.Error != "":
			state = "MISSING: " + file.Error
		case file.Cut:
			state += ", cut"
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%3d/%d  %s  %s\n", done, of, file.Name, state)
	}}
	index, err := pack(cmd.Context(), &p, name, cmd.OutOrStdout(), parts)
	if err != nil {
		return fmt.Errorf("support: %w", err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "\nPacked %d parts into %s. Look through it before you give it away.\n", index.Packed(), name)
	if index.Partial {
		return partialError{errors.New("support: the archive is partial: its index.json says what is missing or cut, and why")}
	}
	return nil
}

// pack writes the file, or none at all. Nobody else on this machine may read it.
func pack(ctx context.Context, p *support.Packer, name string, stdout io.Writer, parts []support.Part) (support.Index, error) {
	if name == "-" {
		return p.Pack(ctx, stdout, parts)
	}
	out, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*") // with mode 0600
	if err != nil {
		return support.Index{}, err
	}
	defer os.Remove(out.Name())
	index, err := p.Pack(ctx, out, parts)
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Rename(out.Name(), name)
	}
	return index, err
}

// parts are those of the cluster, of the demo, or of this machine.
func (f *supportFlags) parts(cmd *cobra.Command) ([]support.Part, error) {
	if err := checkOutput(f.output); err != nil {
		return nil, err
	}
	if f.remote.demo {
		return f.ofDemo(cmd)
	}
	c, err := f.remote.reach(cmd, f.socket)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return append(f.ofProxy(answerer{ask: f.ask}, "proxy"), f.ofMachine()...), nil
	}
	if len(f.metrics)+len(f.logs) > 0 {
		return nil, errors.New("support: --metrics and --log are about this machine; of a cluster they are found")
	}
	parts, err := support.Cluster(cmd.Context(), c, f.logLines)
	if err != nil {
		return nil, err
	}
	proxies, err := f.remote.proxiesOf(cmd.Context(), c, about{})
	if err != nil {
		// An installation that has no proxy is one to ask about, too.
		parts = append(parts, failed("nodes", err))
	}
	return append(parts, f.ofNodes(proxies)...), nil
}

// ofNodes are the answers of the nodes' proxies.
func (f *supportFlags) ofNodes(proxies []answerer) (parts []support.Part) {
	for _, from := range proxies {
		parts = append(parts, f.ofProxy(from, path.Join("nodes", from.node))...)
	}
	return parts
}

func failed(name string, err error) support.Part {
	return support.Part{Name: name, Read: func(context.Context) (io.ReadCloser, error) { return nil, err }}
}

// ofProxy are the answers of one.
func (f *supportFlags) ofProxy(from answerer, folder string) []support.Part {
	question := func(file, where string, query url.Values) support.Part {
		return support.Part{Name: path.Join(folder, file), Read: func(ctx context.Context) (io.ReadCloser, error) { return from.ask(ctx, where, query) }}
	}
	return []support.Part{
		question("status.json", "/status", nil),
		{Name: path.Join(folder, "certificates.json"), Read: func(ctx context.Context) (io.ReadCloser, error) {
			body, err := from.ask(ctx, "/certificates", nil)
			if err != nil {
				return nil, err
			}
			defer body.Close()
			return withoutChains(from, body)
		}},
		question("coverage.json", "/coverage", nil),
		question("denied.json", "/connections", url.Values{"denied": {""}}),
		question("connections.json", "/connections", nil),
		question("flows.json", "/flows", url.Values{"since": {f.since.String()}, "limit": {strconv.Itoa(5000)}}),
		question("dump.json", "/dump", nil),
		question("goroutines.txt", "/debug/pprof/goroutine", url.Values{"debug": {"1"}}),
	}
}

// withoutChains leaves what the certificates say of themselves.
func withoutChains(from answerer, body io.Reader) (io.ReadCloser, error) {
	var answer certificates
	if err := from.read(body, &answer); err != nil {
		return nil, err
	}
	for i := range answer.Certificates {
		answer.Certificates[i].Chain, answer.Certificates[i].Roots = nil, nil
	}
	text, err := json.Marshal(answer)
	return io.NopCloser(bytes.NewReader(text)), err
}

// ofMachine is what there is beside the proxy where no Kubernetes is.
func (f *supportFlags) ofMachine() []support.Part {
	parts := []support.Part{{Name: "facts.json", Read: func(ctx context.Context) (io.ReadCloser, error) {
		text, err := json.Marshal(facts.Look(ctx, ""))
		return io.NopCloser(bytes.NewReader(text)), err
	}}}
	for i, where := range f.metrics {
		parts = append(parts, support.Part{Name: fmt.Sprintf("metrics-%d.txt", i+1), Read: func(ctx context.Context) (io.ReadCloser, error) {
			return support.Get(ctx, where)
		}})
	}
	for i, file := range f.logs {
		parts = append(parts, support.Part{Name: fmt.Sprintf("logs/%d-%s", i+1, filepath.Base(file)), Tail: true, Read: func(context.Context) (io.ReadCloser, error) {
			return os.Open(file)
		}})
	}
	return parts
}
