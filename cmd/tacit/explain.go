package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/internal/version"
	"github.com/tacit-mesh/tacit/proxy/admin"
	xdsclient "github.com/tacit-mesh/tacit/xds/client"
	"github.com/tacit-mesh/tacit/xds/model"
)

// explainFlags say what is to be explained, and in which mesh.
type explainFlags struct {
	client
	mesh     meshFlags
	dump     string
	from, to string
	in       podsIn
}

func explainCommand() *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain [ID | LOG-LINE | - | --from NAMESPACE/POD --to TARGET]",
		Short: "Say step by step why a connection is, was or would be allowed or denied",
		Long: `Follow a connection from the client's socket to the server's: is it captured,
or does a skip list cover it; where does its destination lead; which identity
arrives; what does each policy say; and what would have to change for the
opposite outcome.

With --from and --to nothing is connected: the proxy reasons about the mesh as
it knows it, and any node's proxy gives the same answer; for the certificates,
which their own nodes alone have, those are asked, too. TARGET is
NAMESPACE/POD:PORT, HOST:PORT (as the client's DNS would read it) or IP:PORT.

With ID it is a connection that the node's proxy carries or remembers, in a
cluster those of both nodes: what was recorded, and what would become of it
now. Ids are in the log ("id") and in tacit connections.

LOG-LINE is a line of a proxy's log, as it stands there, in quotes; - reads it,
or an id, from the standard input. Of what no proxy remembers any more, the line itself
says what was, and the mesh of now what would become of it.

With --mesh nothing is asked of anybody: the mesh is that of its pods, services
and policies, as kubectl or the manifests of tacitd --from have them, together
with --policies that are not in force yet. What of them has no effect as
written is said on the standard error. With --dump it is the mesh that a proxy
had, in a file of tacit dump --export. One of another version of Tacit is read
as far as this version can, which is said on the standard error.

Exit status: 0 it is allowed or nothing checks it, 3 it is or may be denied,
4 the same as 0, but not all nodes that may know of it gave an answer, 1 there
is no answer.`,
		Example: `  tacit explain --from shop/frontend --to shop/backend-7d4b9:8080
  tacit explain --from shop/frontend --to backend.shop:80
  tacit explain -n shop --from frontend --to backend:80
  tacit explain --from 203.0.113.9 --to shop/backend-7d4b9:8080   # a client outside the mesh
  tacit explain 4bf92f3577b34da6a3ce929d0e0e4736
  kubectl -n tacit-system logs tacit-proxy-x7k2p | grep denied | tail -n 1 | tacit explain -
  tacit explain --from shop/frontend --to shop/backend-7d4b9:8080 --mesh mesh.yaml --policies strict.yaml
  tacit explain --from shop/frontend --to shop/backend-7d4b9:8080 --dump dump.json`,
		Args: cobra.MaximumNArgs(1),
	}
	f.client.flags(cmd)
	f.mesh.flags(cmd)
	f.in.flags(cmd.Flags(), "")
	cmd.Flags().StringVar(&f.dump, "dump", "", "`file` of tacit dump --export, whose mesh to explain by")
	cmd.Flags().StringVar(&f.from, "from", "", "`client`: NAMESPACE/POD, or an address")
	cmd.Flags().StringVar(&f.to, "to", "", "`target`: NAMESPACE/POD:PORT, HOST:PORT or IP:PORT")
	f.completeEnds(cmd, "from", "to")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) }
	return cmd
}

// errWhat is that it is not clear what to explain.
var errWhat = errors.New("explain: name either the id of a connection, a line of the log, or both --from and --to; see tacit explain --help")

func (f *explainFlags) run(cmd *cobra.Command, args []string) error {
	line, id, err := f.what(cmd, args)
	if err != nil {
		return err
	}
	f.from = f.in.pod(f.from)
	f.to = f.in.target(f.from, f.to)
	pair := f.from != "" && f.to != ""
	switch {
	case len(f.mesh.policies) > 0 && len(f.mesh.mesh) == 0 || f.mesh.instead && len(f.mesh.mesh) == 0, len(f.mesh.mesh) > 0 && f.dump != "",
		(len(f.mesh.mesh) > 0 || f.dump != "") && (id != "" || (line == nil) == !pair):
		return errors.New("explain: --mesh, with or without --policies, goes with --from and --to, or with a line of the log, and so does --dump; see tacit explain --help")
	case len(f.mesh.mesh) > 0 || f.dump != "":
		return f.offline(cmd, line)
	case line != nil && !pair && f.from == "" && f.to == "":
		return f.recorded(cmd, line)
	case id != "" && f.from == "" && f.to == "":
		all, err := f.proxies(cmd, about{})
		if err != nil {
			return err
		}
		return f.byID(cmd, all, id)
	case len(args) == 0 && pair:
		return f.pair(cmd)
	}
	return errWhat
}

// what is the line of the log, or else the id, that is meant; neither if none is.
func (f *explainFlags) what(cmd *cobra.Command, args []string) (line *logLine, id string, err error) {
	if len(args) == 0 {
		return nil, "", nil
	}
	text := args[0]
	if text == "-" {
		in := bufio.NewScanner(cmd.InOrStdin())
		for in.Scan() && strings.TrimSpace(in.Text()) == "" {
		}
		if text = in.Text(); strings.TrimSpace(text) == "" {
			return nil, "", errors.New("explain: there is no line in the standard input")
		}
	}
	if !strings.Contains(text, "{") {
		return nil, strings.TrimSpace(text), nil
	}
	line, err = parseLogLine(text)
	return line, "", err
}

// offline explains in a mesh that nobody is asked about.
func (f *explainFlags) offline(cmd *cobra.Command, line *logLine) error {
	if err := checkOutput(f.output, f.more...); err != nil {
		return err
	}
	read := f.mesh.read
	if f.dump != "" {
		read = f.readDump
	}
	mesh, err := read(cmd)
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	var e admin.Explanation
	if line != nil {
		e, err = admin.ExplainRecorded(mesh, []admin.Connection{line.connection()})
	} else {
		e, err = admin.Explain(mesh, f.from, f.to)
	}
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	return f.show(cmd, e, e, nil)
}

// readDump reads what tacit dump --export has written, and says what of it this
// version does not understand.
func (f *explainFlags) readDump(cmd *cobra.Command) (*model.Snapshot, error) {
	text, err := os.ReadFile(f.dump)
	if err != nil {
		return nil, err
	}
	var dump admin.Dump
	if err := yaml.Unmarshal(text, &dump); err != nil {
		return nil, fmt.Errorf("%s is not what tacit dump --export writes: %w", f.dump, err)
	}
	return meshOf(cmd, f.dump, "write it with tacit dump --export", dump)
}

// meshOf is the mesh in a dump, and says what of it this version does not
// understand; advice is for one without a mesh.
func meshOf(cmd *cobra.Command, name, advice string, dump admin.Dump) (*model.Snapshot, error) {
	of := cmp.Or(dump.Version, "one that does not say which")
	if len(dump.Export) == 0 {
		return nil, fmt.Errorf("%s has no mesh for programs (its version: %s; this is %s): %s", name, of, version.String(), advice)
	}
	mesh, errs := xdsclient.Snapshot(dump.Export)
	if mesh == nil {
		return nil, fmt.Errorf("%s (its version: %s; this is %s): %w", name, of, version.String(), errors.Join(errs...))
	}
	if dump.Version != version.String() {
		cmd.PrintErrf("tacit: %s is of another version, %s; this is %s. What that one knew and this one does not is taken as a proxy of this version would: a DENY policy matches for it, an ALLOW policy does not.\n", name, of, version.String())
	}
	for _, err := range errs {
		cmd.PrintErrf("tacit: not read of %s: %v\n", name, err)
	}
	return mesh, nil
}

// recorded explains what a line of the log is about: by what the proxies
// remember, else by the line and the mesh of now.
func (f *explainFlags) recorded(cmd *cobra.Command, line *logLine) error {
	all, err := f.proxies(cmd, about{})
	if err != nil {
		return err
	}
	var absent absentError
	if line.ID != "" {
		if err := f.byID(cmd, all, line.ID); !errors.As(err, &absent) {
			return err
		}
	}
	lack := absent.lack
	for _, from := range all {
		mesh, err := exported(cmd, from)
		if err != nil {
			lack = errors.Join(lack, fmt.Errorf("explain: mesh of the proxy%s: %w", from.where(), err))
			continue
		}
		e, err := admin.ExplainRecorded(mesh, []admin.Connection{line.connection()})
		if err != nil {
			return fmt.Errorf("explain: %w", err)
		}
		if lack != nil {
			lack = partialError{lack}
		}
		return f.show(cmd, e, e, lack)
	}
	return lack // nobody gave an answer
}

// exported is the mesh of a proxy.
func exported(cmd *cobra.Command, from answerer) (*model.Snapshot, error) {
	body, err := from.ask(cmd.Context(), "/dump", url.Values{"export": {""}})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var dump admin.Dump
	if err := from.read(body, &dump); err != nil {
		return nil, err
	}
	return meshOf(cmd, "the dump of the proxy"+from.where(), "explain by a proxy of this version, or with --mesh", dump)
}

// byID explains a connection that proxies carry or remember. It is an absentError
// if none does.
func (f *explainFlags) byID(cmd *cobra.Command, all []answerer, id string) error {
	query := url.Values{"id": {id}}
	if len(all) > 1 {
		return f.explainByAll(cmd, all, query)
	}
	var e admin.Explanation
	p, err := f.get(cmd, all[0], "/explain", query, &e)
	if err != nil {
		return err
	}
	return ended(cmd, p.Explanation(e), nil, denied(e))
}

// show prints an explanation, for programs as it came, and is the command's end
// for it.
func (f *explainFlags) show(cmd *cobra.Command, e admin.Explanation, asCame any, lack error) error {
	var err error
	if forPrograms(f.output) {
		err = printAs(cmd.OutOrStdout(), f.output, asCame)
	} else {
		err = f.printer(cmd).Explanation(e)
	}
	return ended(cmd, err, lack, denied(e))
}

// denied reports whether the connection is, or may be.
func denied(e admin.Explanation) bool {
	return e.Outcome != admin.Allowed && e.Outcome != admin.Unchecked
}
